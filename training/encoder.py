"""Training of the speech encoder: a small HuBERT and its linear quantizer learn the units of `spiritrt.training.units`.

The student sees short random crops of 1.6 and 3.2 s under heavy augmentation, in part with the attention of a stream,
so that a window of a stream and a whole recording give the same units. Speech with phone times has one target a frame,
speech without has the teacher's posteriors.

    python -m spiritrt.training.encoder --out build/nano --minutes 40 --compile
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from spiritrt.models.checkpoints import Checkpoint, find, save_part
from spiritrt.models.hubert import EncoderLayer, Hubert, HubertConfig, LinearQuantizer, encode_units
from spiritrt.models.weights import load_weights
from spiritrt.training.arguments import add_settings, autocast, launch, parse, settings
from spiritrt.training.augment import Augmentation, augment
from spiritrt.training.checkpoint import Average, Budget, Schedule, check_origin, digest, rounded, set_lr
from spiritrt.training.corpora.manifest import AudioStore, of_units, read_corpora
from spiritrt.training.encoder_data import EncoderData, EncoderTraining, Targets, Units, read_targets
from spiritrt.training.loop import ALONE, resume, train
from spiritrt.training.losses import mel_filters
from spiritrt.training.processes import Place
from spiritrt.training.units import (
    FRAME_SPAN_SAMPLES,
    HOP_SAMPLES,
    SILENCE,
    Teacher,
    load_classifier,
    posteriors,
    unlabelled_clips,
    write_units,
)

N_UNITS = 500
WIDTH = 256
LAYERS = 5
HUBERT_CONFIG: dict[str, object] = {
    "model_cfg": {
        "extractor_mode": "layer_norm",
        "conv_feature_layers": "[(48, 10, 5)] + [(64, 3, 2)] + [(96, 3, 2)] + [(128, 3, 2)] * 2 + [(192, 2, 2)] * 3",
        "conv_bias": True,
        "encoder_layers": LAYERS,
        "encoder_embed_dim": WIDTH,
        "encoder_ffn_embed_dim": 640,
        "encoder_attention_heads": 4,
        "activation_fn": "gelu",
        "layer_norm_first": True,
        "conv_pos": 16,
        "conv_pos_groups": 16,
        "conv_pos_batch_norm": False,
        "required_seq_len_multiple": 1,
    },
    "task_cfg": {"sample_rate": 16000, "normalize": False},
    "output_layer": LAYERS,
}
QUANTIZER_CONFIG: dict[str, object] = {"model_cfg": {"dim": WIDTH, "upstream_dim": WIDTH, "vocab_size": N_UNITS}}
SPECTRA_A_FRAME = 4
MEL_BINS = 32
BLANK_BIAS = -1e4  # the blank class exists in the format and must never win


def frame_spectra(sound: Tensor) -> Tensor:
    """Log mel spectra under each 40 ms frame, four in a row, standardised over each crop: [B, N] to [B, T, 128]."""
    window, hop = 256, HOP_SAMPLES // SPECTRA_A_FRAME
    frames = (sound.shape[1] - FRAME_SPAN_SAMPLES) // HOP_SAMPLES + 1
    padded = F.pad(sound, (0, window))
    hann = torch.hann_window(window, device=sound.device)
    z = torch.stft(padded, window, hop, window=hann, center=False, return_complex=True)
    power = z.real.square() + z.imag.square()
    filters = mel_filters(MEL_BINS, window, 16000).to(sound.device)
    mel = torch.log(filters @ power + 1e-5)[..., : frames * SPECTRA_A_FRAME]
    mel = (mel - mel.mean(dim=(1, 2), keepdim=True)) / (mel.std(dim=(1, 2), keepdim=True) + 1e-3)
    return mel.transpose(1, 2).reshape(len(sound), frames, SPECTRA_A_FRAME * MEL_BINS)


class EncoderTrainer:
    """Encoder, quantizer, optimizer and their state; `step()` makes one optimizer step and returns its figures."""

    def __init__(
        self, data: EncoderData, training: EncoderTraining, compiled: bool = False, place: Place = ALONE
    ) -> None:
        torch.manual_seed(training.seed)
        self.data, self.training, self.place, self.device = data, training, place, place.device
        hubert = Hubert(HubertConfig.from_official(HUBERT_CONFIG), dropout=training.dropout)
        self.model = nn.ModuleDict(
            {
                "hubert": hubert,
                "quantizer": LinearQuantizer(WIDTH, WIDTH, N_UNITS),
                "spectrum": nn.Linear(hubert.config.conv_layers[-1][0], SPECTRA_A_FRAME * MEL_BINS),
            }
        )
        # the last projection of each residual branch starts small: pre-norm layers are deep sums
        for layer in hubert.encoder.layers:
            assert isinstance(layer, EncoderLayer)
            for linear in (layer.self_attn.out_proj, layer.fc2):
                nn.init.normal_(linear.weight, std=0.02 / (2 * LAYERS) ** 0.5)
        self.model.to(self.device)
        decay = [p for p in self.model.parameters() if p.dim() > 1]
        plain = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}], training.lr, (0.9, 0.98)
        )
        # compiled, the convolution stack takes half the time (fused norms and GELUs); one compilation a crop length
        stack = hubert.feature_extractor
        self.convolve = torch.compile(stack, dynamic=False) if compiled else stack
        self.schedule = Schedule(training.lr, training.steps, warmup=min(300, training.steps))
        self.average = Average(self.model)
        self.step_index = 0

    def step(self) -> dict[str, float]:
        set_lr(self.optimizer, self.schedule(self.step_index))
        self.model.train()
        figures = self.place.backward(self.loss, self.step_index, self.training.accumulate)
        self.place.step(self.optimizer, clip=1.0)
        self.average.update(self.model, self.step_index)
        self.step_index += 1
        return figures

    def loss(self, index: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of batch `index`, and its figures."""
        sound, units, probs = (column.to(self.device) for column in self.data.batch(index))
        hubert = self.model["hubert"]
        assert isinstance(hubert, Hubert)
        sees = self.data.sees(index, units.shape[1])
        with autocast(self.device, self.training.precision):
            local = hubert.layer_norm(self.convolve(sound).transpose(1, 2))
            spectra = self.model["spectrum"](local)
            features = hubert.encoder(hubert.post_extract_proj(local), None if sees is None else sees.to(self.device))
            logits = self.model["quantizer"](features)[..., :N_UNITS].float()
        spectrum_loss = F.mse_loss(spectra.float(), frame_spectra(sound))
        log_probs = F.log_softmax(logits, dim=-1)
        unit_loss = -(log_probs.gather(-1, units) * probs).sum(-1).mean()
        phone_of = self.data.phone_of.to(self.device)
        phone_target = (phone_of[units] * probs[..., None]).sum(-2)
        phone_loss = -(phone_target * (log_probs.exp() @ phone_of + 1e-6).log()).sum(-1).mean()
        t = self.training
        loss = unit_loss + t.phone_weight * phone_loss + t.spectrum_weight * spectrum_loss - 0.03 * log_probs.mean()
        made = logits.argmax(-1)
        phone_hits = (phone_of[made] * phone_of[units[..., 0]]).sum(-1)
        return loss, {
            "loss": float(unit_loss.detach()),
            "accuracy": float((made == units[..., 0]).float().mean()),
            "phone_accuracy": float(phone_hits.mean()),
            "spectrum": float(spectrum_loss.detach()),
        }

    def begin_from(self, checkpoint: Checkpoint) -> None:
        """Take the encoder and the quantizer of a family for a beginning.

        Raises ValueError where they have another shape, or the family's units are others.
        """
        inventory = checkpoint.folder / "inventory.json"
        if not inventory.is_file() or digest(json.loads(inventory.read_text("utf-8"))) != self.data.made_of["units"]:
            raise ValueError(
                f"{checkpoint.folder} has other units than these, or does not name them in inventory.json: leave out"
                " --begin, or make the units of the corpus that it was trained on"
            )
        for name in ("hubert", "quantizer"):
            part = checkpoint.part(name)
            if part.config != {"hubert": HUBERT_CONFIG, "quantizer": QUANTIZER_CONFIG}[name]:
                raise ValueError(f"the {name} of {checkpoint.folder} has another shape than this encoder")
            load_weights(self.model[name], part.load())
        self.average = Average(self.model)

    def state(self) -> dict[str, object]:
        return {
            "step": self.step_index, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": self.average.tensors, "made_of": self.data.made_of,
        }  # fmt: skip

    def resume(self, state: Mapping[str, object]) -> None:
        """Raises ValueError where the state is of other units."""
        check_origin(state.get("made_of"), self.data.made_of)
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.average.load(state["average"])  # type: ignore[arg-type]
        self.step_index = int(state["step"])  # type: ignore[call-overload]

    def shipped(self) -> tuple[Hubert, LinearQuantizer]:
        """Averaged weights, rounded to fp16 and back, with the blank class switched off."""
        hubert, quantizer = Hubert(HubertConfig.from_official(HUBERT_CONFIG)), LinearQuantizer(WIDTH, WIDTH, N_UNITS)
        weights = rounded(self.average.tensors)
        for name, module in (("hubert", hubert), ("quantizer", quantizer)):
            prefix = name + "."
            own = {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}
            module.load_state_dict(own)
        last = quantizer[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight[N_UNITS] = 0
            last.bias[N_UNITS] = BLANK_BIAS
        return hubert.eval(), quantizer.eval()


def accuracy(
    encoded: Mapping[str, Units], targets: Mapping[str, Targets], ids: list[str], inventory: list[str]
) -> dict[str, float]:
    """Share of frames whose unit, and whose phone, is the target's."""
    names = np.array(inventory)
    made = np.concatenate([encoded[i] for i in ids])
    real = np.concatenate([targets[i].units[:, 0] for i in ids])
    return {"unit": float((made == real).mean()), "phone": float((names[made] == names[real]).mean())}


def encode_store(
    hubert: Hubert,
    quantizer: LinearQuantizer,
    store: AudioStore,
    ids: list[str],
    augmentation: Augmentation | None = None,
) -> dict[str, Units]:
    """Frame units of whole clips, as they are or through a random channel with noise (seeded by the place in `ids`)."""
    encoded = {}
    for number, clip_id in enumerate(tqdm(ids, desc="encoding", file=sys.stderr)):
        samples = store.read(store.clips[clip_id])
        if augmentation is not None:
            samples = augment(samples, augmentation, np.random.default_rng((number, len(ids))))
        encoded[clip_id] = encode_units(hubert, quantizer, torch.from_numpy(samples)).numpy()
    return encoded


def teacher_agreement(
    hubert: Hubert, quantizer: LinearQuantizer, recordings: Path, classifier: Path, inventory: Sequence[str]
) -> dict[str, float]:
    """Agreement with the teacher on recordings without labels: share of equal units and of equal phones."""
    teacher, names = Teacher(torch.get_num_threads()), np.array(inventory)
    model = load_classifier(classifier, Teacher.width, N_UNITS)
    made, heard = [], []
    for _, samples in unlabelled_clips(recordings):
        made.append(encode_units(hubert, quantizer, torch.from_numpy(samples)).numpy())
        heard.append(posteriors(model, teacher(samples), 1)[0][:, 0])
    a, b = np.concatenate(made), np.concatenate(heard)
    return {"frames": float(len(a)), "unit": float((a == b).mean()), "phone": float((names[a] == names[b]).mean())}


def export(trainer: EncoderTrainer, model: Path) -> tuple[Hubert, LinearQuantizer]:
    """Write the `hubert` and `quantizer` parts (fp16) of the family in `model`; returns what was written."""
    hubert, quantizer = trainer.shipped()
    save_part(model, "hubert", HUBERT_CONFIG, rounded(hubert.state_dict()))
    save_part(model, "quantizer", QUANTIZER_CONFIG, rounded(quantizer.state_dict()))
    return hubert, quantizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the speech encoder, export it and encode the corpus with it.")
    parser.add_argument(
        "--corpus", type=Path, nargs="+", default=[Path("../shared/corpus")], help="folders with a manifest.jsonl"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/nano"), help="folder that spiritrt.training.units wrote"
    )
    parser.add_argument("--model", type=Path, default=Path("build/nano/model"), help="family to export into")
    parser.add_argument("--recordings", type=Path, help="folder of other recordings to compare with the teacher on")
    parser.add_argument("--minutes", type=float, default=40)
    add_settings(parser, EncoderTraining())
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the convolution stack (needs a C++ compiler)"
    )
    parser.add_argument("--begin", help="a family of the same units whose encoder the first run begins with")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint without training")
    args = parse(parser, "encoder")
    training = settings(EncoderTraining, args)
    targets = read_targets(args.out / "targets.npz", training.teacher_share)
    inventory = json.loads(of_units(args.out / "inventory.json").read_text(encoding="utf-8"))
    utterances = [u for members in read_corpora(args.corpus).values() for u in members]
    store = AudioStore(args.out)
    counts = np.bincount(np.concatenate([targets[u.id].units[:, 0] for u in utterances]), minlength=N_UNITS)
    silence_unit = int(np.argmax(counts * (np.array(inventory) == SILENCE)))
    data = EncoderData(store, targets, inventory, silence_unit, training)
    place = Place.take(args.device)
    trainer = EncoderTrainer(data, training, args.compile, place)
    path = args.out / "encoder.ckpt"
    if args.begin and not path.is_file():
        trainer.begin_from(find(args.begin))
    spent_s = resume(trainer, path)
    if not args.export_only:
        budget = Budget(args.minutes, before_s=spent_s)
        train(trainer, training.steps, path, args.out / "encoder.log", budget, place=place)
    place.leave()
    if place.rank > 0:
        return
    hubert, quantizer = export(trainer, args.model)
    # what --begin and curation go by
    (args.model / "inventory.json").write_text(json.dumps(inventory, ensure_ascii=False), encoding="utf-8")
    encoded = encode_store(hubert, quantizer, store, [u.id for u in utterances])
    write_units(args.out / "encoder_units.jsonl", utterances, lambda i: encoded[i].tolist())
    # units of training speech are better than any that will be heard later; a bad line makes them worse again
    trained = [u for u in utterances if u.split == "train"]
    worse = encode_store(hubert, quantizer, store, [u.id for u in trained], training.augmentation)
    write_units(args.out / "encoder_units_noisy.jsonl", trained, lambda i: worse[i].tolist())
    report = {
        split: accuracy(encoded, targets, [u.id for u in utterances if u.split == split], inventory)
        for split in ("train", "test", "test_voice") if any(u.split == split for u in utterances)
    }  # fmt: skip
    report["train, augmented"] = accuracy(worse, targets, [u.id for u in trained], inventory)
    if args.recordings is not None:
        classifier = args.out / "unit_classifier.pt"
        report["teacher"] = teacher_agreement(hubert, quantizer, args.recordings, classifier, inventory)
    (args.out / "encoder_report.json").write_text(json.dumps({"step": trainer.step_index, **report}, indent=1))
    print(json.dumps({"step": trainer.step_index, **report}, indent=1))
    steps = f"{trainer.step_index} of {training.steps} steps"
    said = f"{args.model}: encoder and quantizer after {steps}; log, report and what they hear are in {args.out}"
    print(said, file=sys.stderr)


if __name__ == "__main__":
    launch(main)
