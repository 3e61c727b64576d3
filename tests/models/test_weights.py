import pytest
import torch
from torch import nn

from spiritrt.models.weights import config_integers, config_section, config_value, fold_weight_norm, load_weights


def test_values_take_the_dtype_of_the_module():
    module, weight = nn.Linear(3, 2), torch.randn(2, 3, dtype=torch.bfloat16)
    load_weights(module, {"weight": weight, "bias": torch.zeros(2, dtype=torch.float16)})
    assert module.weight.dtype == torch.float32 and torch.equal(module.weight, weight.float())


def test_assign_takes_the_tensors_themselves():
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    weights = {"weight": torch.randn(2, 3, dtype=torch.bfloat16), "bias": torch.zeros(2, dtype=torch.bfloat16)}
    load_weights(module, weights, assign=True)
    assert module.weight.data_ptr() == weights["weight"].data_ptr() and module.weight.dtype == torch.bfloat16


def test_only_allowed_keys_are_left_out():
    weights = nn.Linear(3, 2).state_dict() | {"decoder.0.weight": torch.zeros(1), "old": torch.zeros(1)}
    load_weights(nn.Linear(3, 2), weights, ignore=["decoder.*", "old"])
    with pytest.raises(ValueError, match=r"Linear: 1 unexpected weights: decoder\.0\.weight"):
        load_weights(nn.Linear(3, 2), weights, ignore=["old"])


def test_a_pattern_never_leaves_out_what_the_module_has():
    module, weights = nn.Linear(3, 2), nn.Linear(3, 2).state_dict()
    load_weights(module, weights, ignore=["*"])
    assert torch.equal(module.weight, weights["weight"])


def test_nothing_is_loaded_where_anything_is_wrong():
    module = nn.Linear(3, 2)
    before = module.bias.clone()
    with pytest.raises(ValueError, match=r"weight: expected shape \(2, 3\), got \(3, 2\)"):
        load_weights(module, {"bias": torch.ones(2), "weight": torch.ones(3, 2)})
    assert torch.equal(module.bias, before)


def test_long_lists_of_keys_are_cut():
    with pytest.raises(ValueError, match=r"8 weights missing: 0\.bias, 0\.weight, 1\.bias, 1\.weight and 4 more"):
        load_weights(nn.Sequential(*(nn.Linear(1, 1) for _ in range(4))), {})


def test_the_batch_counter_may_be_missing():
    weights = nn.BatchNorm1d(3).state_dict()
    del weights["num_batches_tracked"]
    load_weights(nn.BatchNorm1d(3), weights)
    del weights["running_var"]
    with pytest.raises(ValueError, match="1 weights missing: running_var"):
        load_weights(nn.BatchNorm1d(3), weights)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_folding_as_torch_does_for_any_dim(dim):
    conv = nn.Conv1d(4, 6, 3)
    expected = conv.weight.detach().clone()
    nn.utils.parametrizations.weight_norm(conv, dim=dim)
    folded = fold_weight_norm(conv.state_dict())
    assert folded.keys() == {"weight", "bias"}
    torch.testing.assert_close(folded["weight"], expected)


def test_a_weight_normed_module_keeps_its_pairs():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    weights = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).state_dict()
    load_weights(module, weights)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


def test_direction_without_magnitude():
    with pytest.raises(ValueError, match=r"conv\.weight_v: weight norm needs both conv\.weight_g and conv\.weight_v"):
        fold_weight_norm({"conv.weight_v": torch.ones(2, 2, 1)})


def test_config_values():
    config: dict[str, object] = {"n": 3, "x": 2, "on": True, "none": None, "list": [1, 2], "part": {"a": 1}}
    assert config_value(config, "n", int) == 3 and config_value(config, "on", bool) is True
    assert config_value(config, "none", int, 7) == 7 and config_value(config, "x", float) == 2.0
    assert config_integers(config, "list") == (1, 2) and config_section(config, "part") == {"a": 1}
    for key, kind in (("on", int), ("n", str), ("n", bool), ("list", int)):
        with pytest.raises(ValueError, match=f"config '{key}' must be of type {kind.__name__}, got"):
            config_value(config, key, kind)
    with pytest.raises(ValueError, match="config has no 'gone'; it must be of type int"):
        config_value(config, "gone", int)
    with pytest.raises(ValueError, match="'part' must be a list of whole numbers"):
        config_integers(config, "part")
    with pytest.raises(ValueError, match="no section 'list'"):
        config_section(config, "list")
