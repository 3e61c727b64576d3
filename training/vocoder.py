"""Training of the unit HiFi-GAN: spectral losses and what the encoder hears, then two light discriminators (optional),
then the duration predictor.

Units carry no pitch, and what the input cannot tell the output can only blur: `spiritrt.training.flatten` puts the
sound on one note a voice first. With `--shards` of an Expressive family pitch and style codes are inputs as well, and
the sound stays as it was. `--begin` starts from another vocoder, whose voices keep their numbers.

    python -m spiritrt.training.flatten --out build/nano
    python -m spiritrt.training.vocoder --out build/nano --sound build/nano/flat --minutes 30
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from tqdm import tqdm

from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.hubert import Hubert, hubert_from_official
from spiritrt.models.vocoder import ResidualBlock, Vocoder, VocoderConfig, vocoder_from_official
from spiritrt.training.arguments import add_settings, autocast, launch, parse, settings
from spiritrt.training.checkpoint import (
    Average,
    Budget,
    Schedule,
    check_origin,
    digest,
    rounded,
    set_lr,
)
from spiritrt.training.corpora.manifest import AudioStore, of_units
from spiritrt.training.discriminators import Discriminators, adversarial_loss, discriminator_loss, feature_loss
from spiritrt.training.loop import ALONE, resume, train
from spiritrt.training.losses import HearingLoss, SpectralLoss
from spiritrt.training.processes import Place
from spiritrt.training.units import HOP_SAMPLES
from spiritrt.training.vocoder_data import (
    OFFICIAL_CONFIG,
    Units,
    VocoderData,
    VocoderTraining,
    read_codes,
    read_units,
    run_lengths,
    speakers_of,
    training_lines,
    with_speakers,
)

# at the sound, the gradient of each is then about as large as that of the spectral loss
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT, HEARING_WEIGHT = 8.0, 60.0, 2.0
LENGTH_LINES = 200  # on which the length of whole lines is measured


def build_vocoder(config: Mapping[str, object] = OFFICIAL_CONFIG) -> Vocoder:
    """A fresh vocoder with weight norm on every convolution of the generator."""
    vocoder = Vocoder(VocoderConfig.from_official(config))
    for up in vocoder.ups:
        assert isinstance(up, nn.ConvTranspose1d)
        nn.init.kaiming_normal_(up.weight, nonlinearity="leaky_relu", a=0.1)
        with torch.no_grad():  # each output sample sees kernel / stride taps only
            up.weight.mul_((up.weight.shape[1] * up.stride[0] / up.weight.shape[0]) ** 0.5)
    for module in vocoder.resblocks:
        assert isinstance(module, ResidualBlock)
        for dilated, plain in zip(module.convs1, module.convs2, strict=True):
            assert isinstance(dilated, nn.Conv1d) and isinstance(plain, nn.Conv1d)
            nn.init.kaiming_normal_(dilated.weight, nonlinearity="leaky_relu", a=0.1)
            nn.init.kaiming_normal_(plain.weight, nonlinearity="leaky_relu", a=0.1)
            with torch.no_grad():
                plain.weight.mul_(0.3)
    nn.init.normal_(vocoder.conv_post.weight, std=0.02)
    for conv in generator_convs(vocoder):
        weight_norm(conv)
    return vocoder


def generator_convs(vocoder: Vocoder) -> Iterator[nn.Module]:
    yield vocoder.conv_pre
    yield from vocoder.ups
    for block in vocoder.resblocks:
        yield from (m for m in block.modules() if isinstance(m, nn.Conv1d))
    yield vocoder.conv_post


def folded(vocoder: Vocoder, average: Average | None, config: Mapping[str, object] = OFFICIAL_CONFIG) -> Vocoder:
    """A copy in eval mode with averaged weights and weight norm folded, as it is shipped: only `config`'s speakers."""
    tensors = vocoder.state_dict() | (average.tensors if average else {})
    tensors["spkr.weight"] = tensors["spkr.weight"][: int(config["num_speakers"])]  # type: ignore[call-overload]
    return vocoder_from_official(config, tensors)


@torch.no_grad()
def begin_from(vocoder: Vocoder, base: Vocoder) -> None:
    """Gives `vocoder` the weights of another; an Expressive one sounds like the Base one it begins with until pitch and
    style are learnt.

    The inputs are units, pitch, style and speaker, `embedding_dim` channels each; those of pitch and style start at 0.
    """
    own = dict(vocoder.named_parameters())
    for conv, given in zip(generator_convs(vocoder), generator_convs(base), strict=True):
        assert isinstance(conv, nn.Conv1d | nn.ConvTranspose1d) and isinstance(given, nn.Conv1d | nn.ConvTranspose1d)
        weight = given.weight.detach().clone()
        if weight.shape != conv.weight.shape:
            width = base.config.embedding_dim
            whole = torch.zeros_like(conv.weight)
            whole[:, :width], whole[:, -width:] = weight[:, :width], weight[:, width:]
            weight = whole
        conv.weight = weight  # weight norm takes it apart
        if conv.bias is not None and given.bias is not None:
            conv.bias.copy_(given.bias)
    for name, value in base.named_parameters():
        if name.startswith(("dict.", "spkr.", "dur_predictor.")):
            rows = min(len(value), len(own[name]))
            own[name][:rows].copy_(value[:rows])


def fit_durations(vocoder: Vocoder, lines: list[Units], seed: int, steps: int, batch: int = 16) -> None:
    """Train the duration predictor of `vocoder` in place on frame units; the unit embedding stays as it is."""
    assert vocoder.dur_predictor is not None
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pairs = [run_lengths(line) for line in lines if len(line) > 2]
    predictor = vocoder.dur_predictor.train()
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = Schedule(2e-3, steps, warmup=50)
    for step in tqdm(range(steps), desc="durations", file=sys.stderr):
        set_lr(optimizer, schedule(step))
        chosen = [pairs[i] for i in rng.integers(len(pairs), size=batch)]
        width = max(len(units) for units, _ in chosen)
        units, frames = torch.zeros(batch, width, dtype=torch.long), torch.zeros(batch, width)
        for row, (u, d) in enumerate(chosen):
            # unequal rows are filled up by running on from the start, so that no padding is learnt
            repeat = np.resize(np.arange(len(u)), width)
            units[row], frames[row] = torch.from_numpy(u[repeat]), torch.from_numpy(d[repeat].astype(np.float32))
        x = predictor(vocoder.dict(units).detach())
        loss = (x - torch.log(frames + 1)).square().clamp_max(4).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    vocoder.eval()
    # a mean of logarithms, rounded, falls short of the mean: the constant makes whole lines as long as they were
    with torch.no_grad():
        fitted, low, high = predictor.proj.bias.clone(), -0.5, 0.5
        spread = lines[:: max(1, len(lines) // LENGTH_LINES)]
        for _ in range(8):
            middle = (low + high) / 2
            predictor.proj.bias.copy_(fitted + middle)
            short = duration_error(vocoder, spread)["length_ratio"] < 1
            low, high = (middle, high) if short else (low, middle)


@torch.no_grad()
def duration_error(vocoder: Vocoder, lines: list[Units]) -> dict[str, float]:
    """Mean absolute error in frames a unit, and predicted over real total length, on frame units; nothing of none."""
    errors, made, real = [], 0, 0
    for units, frames in map(run_lengths, lines):
        predicted = vocoder.durations(torch.from_numpy(units)[None])[0].numpy()
        errors.append(np.abs(predicted - frames))
        made, real = made + int(predicted.sum()), real + int(frames.sum())
    if not errors:
        return {}
    return {"duration_error_frames": float(np.concatenate(errors).mean()), "length_ratio": made / real}


class VocoderTrainer:
    """Model, discriminators, optimizers and their state; `step()` makes one optimizer step and returns its losses."""

    def __init__(
        self,
        data: VocoderData,
        training: VocoderTraining,
        config: Mapping[str, object] = OFFICIAL_CONFIG,
        base: Vocoder | None = None,
        hubert: Hubert | None = None,
        place: Place = ALONE,
    ) -> None:
        """`config` is of what is shipped, without `training.others`; `base` is a Base vocoder to begin with the weights
        of; `hubert` listens to what is made."""
        torch.manual_seed(training.seed)
        self.data, self.training, self.config = data, training, dict(config)
        self.place, self.device = place, place.device
        self.vocoder, self.discriminators = build_vocoder(with_speakers(config, training.voices)), Discriminators()
        if base is not None:
            begin_from(self.vocoder, base)
        self.vocoder.to(self.device)
        self.discriminators.to(self.device)
        trained = [p for n, p in self.vocoder.named_parameters() if not n.startswith("dur_predictor")]
        self.optimizer = torch.optim.AdamW(trained, lr=training.lr, betas=(0.8, 0.99), weight_decay=0.0)
        self.d_optimizer = torch.optim.AdamW(self.discriminators.parameters(), lr=training.gan_lr, betas=(0.8, 0.99))
        self.made_of = {"units": data.made_of, "voices": ", ".join(training.voices), "shape": digest(self.config)}
        self.average = Average(self.vocoder)
        self.loss = SpectralLoss().to(self.device)
        self.hearing = HearingLoss(hubert).to(self.device) if hubert else None
        self.step_index = 0

    def learning_rate(self) -> float:
        t = self.training
        if self.step_index < t.gan_from:
            return Schedule(t.lr, min(t.gan_from, t.steps), floor=t.gan_lr / t.lr)(self.step_index)
        return t.gan_lr

    def step(self) -> dict[str, float]:
        adversaries = self.step_index >= self.training.gan_from
        set_lr(self.optimizer, self.learning_rate())
        losses = self.place.backward(
            lambda index: self.losses(index, adversaries), self.step_index, self.training.accumulate
        )
        self.place.step(self.optimizer, clip=5.0)
        if adversaries:
            self.place.step(self.d_optimizer)
        self.average.update(self.vocoder, self.step_index)
        self.step_index += 1
        return losses

    def losses(self, index: int, adversaries: bool) -> tuple[Tensor, dict[str, float]]:
        """The generator's loss of batch `index`, and its parts; the discriminators, where they take part, get the
        gradients of theirs."""
        crops = self.data.batch(index).to(self.device)
        real = crops.sound
        with self.autocast():
            made = self.vocoder(crops.units, crops.speakers, pitch=crops.pitch, style=crops.style)
        made = made.float()
        total = self.loss(made, real)
        losses = {"spectral": float(total.detach())}
        if self.hearing:
            with self.autocast():
                heard = self.hearing(made, real)
            total = total + HEARING_WEIGHT * heard
            losses["heard"] = float(heard.detach())
        if adversaries:
            t = self.training
            rng = np.random.default_rng((t.seed, index, 1))
            first = int(rng.integers(t.frames - t.gan_frames + 1)) * HOP_SAMPLES
            a, b = (x[:, first : first + t.gan_frames * HOP_SAMPLES] for x in (made, real))
            with self.autocast():
                of_real = self.discriminators(b)
                d_loss = discriminator_loss(self.discriminators(a.detach()), of_real)
            (d_loss / t.accumulate).backward()
            self.discriminators.requires_grad_(False)
            with self.autocast():
                of_made = self.discriminators(a)
            self.discriminators.requires_grad_(True)
            of_real = [(score.detach(), [x.detach() for x in features]) for score, features in of_real]
            adversarial, features = adversarial_loss(of_made), feature_loss(of_made, of_real)
            total = total + ADVERSARIAL_WEIGHT * adversarial + FEATURE_WEIGHT * features
            losses |= {"d": float(d_loss.detach()), "g": float(adversarial.detach()), "fm": float(features.detach())}
        return total, losses

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.device, self.training.precision)

    def state(self) -> dict[str, object]:
        return {
            "step": self.step_index, "vocoder": self.vocoder.state_dict(), "optimizer": self.optimizer.state_dict(),
            "discriminators": self.discriminators.state_dict(), "d_optimizer": self.d_optimizer.state_dict(),
            "average": self.average.tensors, "made_of": self.made_of,
        }  # fmt: skip

    def resume(self, state: Mapping[str, object]) -> None:
        """Raises ValueError where the state is of other units, voices or another shape."""
        check_origin(state.get("made_of"), self.made_of)
        self.vocoder.load_state_dict(state["vocoder"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.discriminators.load_state_dict(state["discriminators"])  # type: ignore[arg-type]
        self.d_optimizer.load_state_dict(state["d_optimizer"])  # type: ignore[arg-type]
        self.average.load(state["average"])  # type: ignore[arg-type]
        self.step_index = int(state["step"])  # type: ignore[call-overload]


def export(trainer: VocoderTrainer, model: Path, lines: list[Units], held_out: list[Units]) -> dict[str, float]:
    """Fit durations to `lines` on averaged weights and write the `vocoder` part (fp16) of the family in `model`."""
    shipped = folded(trainer.vocoder, trainer.average, trainer.config)
    fit_durations(shipped, lines, trainer.training.seed, trainer.training.duration_steps)
    save_part(model, "vocoder", trainer.config, rounded(shipped.state_dict()))
    return {"step": float(trainer.step_index), **duration_error(shipped, held_out)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the unit vocoder and export it.")
    parser.add_argument(
        "--out", type=Path, default=Path("build/nano"), help="folder that spiritrt.training.units wrote"
    )
    parser.add_argument("--model", type=Path, default=Path("build/nano/model"), help="family to export into")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--gan-from", type=int, help="step at which discriminators join (default: never)")
    add_settings(parser, VocoderTraining(), but=("gan_from", "speakers", "others"))
    parser.add_argument("--sound", type=Path, help="folder of the sound to make, where it is not that of --out")
    parser.add_argument("--speakers", nargs="+", help="voices to learn (default: nano's own, else all that are there)")
    parser.add_argument(
        "--others", nargs="+", help="voices to learn from as well, not exported (default: all others of --sound)"
    )
    parser.add_argument("--spectral-only", action="store_true", help="for a family without an encoder to listen with")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint without training")
    parser.add_argument(
        "--shards", type=Path, nargs="+", default=[], help="of an Expressive family: its codes as inputs"
    )
    parser.add_argument("--begin", help="a family whose vocoder the first run begins with; with --shards a Base family")
    wide = OFFICIAL_CONFIG["upsample_initial_channel"]
    parser.add_argument("--channels", type=int, default=wide, help="of the first layer; halved by each of the others")
    args = parse(parser, "vocoder")
    if args.begin and args.channels != wide:
        parser.error(f"--begin has a vocoder of {wide} channels, not {args.channels}: leave out one of the two")
    sound = AudioStore(args.sound or args.out)
    speakers = speakers_of(sound, args.speakers)
    others = speakers_of(sound, args.others) if args.others else ()
    if args.sound and args.others is None:
        others = tuple(name for name in sorted(training_lines(sound)) if name not in speakers)
    gan_from = args.steps if args.gan_from is None else args.gan_from
    training = settings(VocoderTraining, args, gan_from=gan_from, speakers=speakers, others=others)
    with np.load(of_units(args.out / "targets.npz")) as arrays:
        targets = {k.removesuffix("/units"): arrays[k].astype(np.int64) for k in arrays.files if k.endswith("/units")}
    files = [args.out / "encoder_units.jsonl", args.out / "encoder_units_noisy.jsonl"]
    encoded = [read_units(file) for file in files if file.is_file()]
    inventory = json.loads(of_units(args.out / "inventory.json").read_text(encoding="utf-8"))
    store = AudioStore(args.out)
    codes, config, base, name = None, OFFICIAL_CONFIG, None, "vocoder"
    if args.shards:
        codes, config = read_codes(args.shards, find(str(args.model)))
        name = "vocoder_expressive"
    if args.begin:
        part = find(args.begin).part("vocoder")
        base = vocoder_from_official(part.config, part.load())
    config = with_speakers(config, speakers) | {"upsample_initial_channel": args.channels}
    hubert = None
    if not args.spectral_only:
        part = find(str(args.model)).part("hubert")
        hubert = hubert_from_official(part.config, part.load())
    data = VocoderData(sound, targets, encoded, inventory, training, codes)
    place = Place.take(args.device)
    trainer = VocoderTrainer(data, training, config, base, hubert, place)
    # a state of natural sound does not go on with flat sound, nor the other way round
    trainer.made_of["sound"] = "on one note" if ((args.sound or args.out) / "notes.json").is_file() else "as recorded"
    path = args.out / f"{name}.ckpt"
    spent_s = resume(trainer, path)
    if not args.export_only:
        budget = Budget(args.minutes, before_s=spent_s)
        train(trainer, training.steps, path, path.with_suffix(".log"), budget, place=place)
    place.leave()
    if place.rank > 0:
        return
    clips = [clip for clip in store.clips.values() if clip.id in targets]
    neutral = [clip for clip in clips if clip.style == "neutral"] or clips
    kinds = [*encoded[:1], targets]  # what an encoder hears, and what a language model says
    lines, held_out = (
        [kind[clip.id] for kind in kinds for clip in neutral if (clip.split == "train") == trained and clip.id in kind]
        for trained in (True, False)
    )
    print(json.dumps(export(trainer, args.model, lines, held_out)))


if __name__ == "__main__":
    launch(main)
