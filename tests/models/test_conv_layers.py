import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritrt.models.conv_layers import parse_conv_layers


@pytest.mark.parametrize(
    ("expression", "layers"),
    [
        ("[(512,10,5)] + [(512,3,2)] * 2", ((512, 10, 5), (512, 3, 2), (512, 3, 2))),
        (" 2 * [(4, 3, 1 + 1)]+[(2*3,2,3-1)]", ((4, 3, 2), (4, 3, 2), (6, 2, 2))),
        ("[[4, 3, 2]]", ((4, 3, 2),)),
    ],
)
def test_conv_feature_layers(expression, layers):
    assert parse_conv_layers(expression) == layers


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "[(1,2,3)] * 1000000",
        "[(1,2,3)] * 10 ** 9",
        "[(1,2,3) for _ in range(3)]",
        "[(1,2)]",
        "[(1,2,True)]",
        "[(1.5,2,3)]",
        "(1,2,3)",
        "[]",
        "[(1,2,3)",
        "",
        "x",
        "(" * 400,
        "[(1,2,3)]" + " " * 600,
    ],
)
def test_other_expressions_are_refused(expression):
    with pytest.raises(ValueError, match=re.escape(f"conv_feature_layers {expression[:500]!r}")):
        parse_conv_layers(expression)


@given(st.text(alphabet="[](),123+-* ", max_size=40))
def test_any_text_gives_layers_or_a_value_error(text):
    try:
        layers = parse_conv_layers(text)
    except ValueError:
        return
    assert layers and all(len(layer) == 3 for layer in layers)
