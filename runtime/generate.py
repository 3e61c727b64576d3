"""Offline Spirit LM: text and speech in any order in, text, speech or both out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spiritrt import audio
from spiritrt.audio import RATE_HZ, Samples
from spiritrt.decoding import Decoder
from spiritrt.models.family import Family
from spiritrt.sampling import GREEDY, Sampling
from spiritrt.stopping import Stop
from spiritrt.tokens.prompt import Run, SpeechRun, TextRun, build, ends_in, parse_output
from spiritrt.tokens.units import Units, merge
from spiritrt.tokens.vocabulary import Modality, SpeechToken, format_speech, parse_speech

ASR_OPEN, ASR_CLOSE = "<START Transcript>", "<END>"
TTS_FLAG = " 'stop'"
LABEL_FLAG = "A:"


@dataclass(frozen=True, slots=True)
class Text:
    """Text in a prompt or an output, taken literally: exact token spellings in it are an error."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """Speech in a prompt or an output.

    `samples` is sound (a file, or an array [N] or [N, channels] at `rate` Hz), `tokens` a token string like
    `[Hu99][Hu49]`. A prompt needs one of the two; an output has both, its samples mono float32.
    """

    samples: audio.Source | None = None
    rate: int = RATE_HZ
    tokens: str | None = None

    def __post_init__(self) -> None:
        if self.samples is None and self.tokens is None:
            raise ValueError("Speech needs samples (a file or an array) or tokens")

    @property
    def seconds(self) -> float:
        """Length in seconds; raises ValueError where `samples` is not an array."""
        if self.samples is None or isinstance(self.samples, audio.Path | str):
            raise ValueError("the length of speech that is not loaded is not known")
        return len(self.samples) / self.rate


Prompt: TypeAlias = str | Sequence[Text | Speech]


class Output(list[Text | Speech]):
    """A list of Text and Speech, with what made it.

    `ids` are the generated tokens, `logprobs` their log-probabilities over the full vocabulary, `prompt_ids` the
    prompt's tokens, and `finish` why it ended: "end" (an end token), "string", "length" (max_new_tokens), "context",
    "silence" or "repetition".
    """

    def __init__(
        self,
        items: Sequence[Text | Speech],
        ids: list[int],
        logprobs: list[float],
        prompt_ids: list[int],
        raw: str,
        finish: str,
    ) -> None:
        super().__init__(items)
        self.ids = ids
        self.logprobs = logprobs
        self.prompt_ids = prompt_ids
        self.raw = raw
        self.finish = finish

    @property
    def text(self) -> str:
        """All text of the output."""
        return "".join(item.text for item in self if isinstance(item, Text))


class LogProbs(NamedTuple):
    """Likelihood of a continuation: natural log-probabilities over the full vocabulary."""

    sum: float
    mean: float
    tokens: list[float]


class Classification(NamedTuple):
    """The most likely label, and the log-probability (sum) of each."""

    label: str
    scores: dict[str, float]


class SpiritLM:
    """A Spirit LM for offline use; `spiritrt.load` makes one. `family` holds its parts."""

    def __init__(self, family: Family) -> None:
        self.family = family

    def generate(
        self,
        prompt: Prompt,
        output: Modality = "arbitrary",
        sampling: Sampling | None = None,
        max_new_tokens: int = 200,
        stop: Stop | None = None,
        speaker: int | None = None,
        style: int | None = None,
    ) -> Output:
        """Continues a prompt in text, speech or whatever the model likes ("arbitrary").

        `prompt` is a list of Text and Speech, or a prompt string like `[Speech][Hu99]...`, which is used as it is.
        Where the prompt ends in speech and the output begins with it, both are vocoded together and the prompt's
        samples cut off. `speaker` and `style` choose the voice.

        Raises ValueError for an unknown output, a prompt that fills the context, unusable audio, or an unknown voice.
        """
        sampling, stop = sampling or Sampling(), stop or Stop()
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        string = self.prompt_string(prompt, output)
        prompt_ids = self._encode_prompt(string)
        allowed = self._allowed(output, stop)
        decoder = Decoder(self.family, len(prompt_ids) + max_new_tokens)
        decoder.append(prompt_ids)
        ids: list[int] = []
        logprobs: list[float] = []
        finish = None
        while finish is None:
            token, logprob = decoder.draw(allowed, sampling, ids)
            finish = stop.reason([*ids[-stop.window :], token])
            if finish == "end":
                break
            ids.append(token)
            logprobs.append(logprob)
            if finish is None and stop.strings and stop.cut(self._text(prompt_ids, ids)) is not None:
                finish = "string"
            if finish is None and len(ids) >= max_new_tokens:
                finish = "length"
            if finish is None and decoder.room == 0:
                finish = "context"
            if finish is None:
                decoder.append([token])
        raw = self._text(prompt_ids, ids)
        cut = stop.cut(raw)
        raw = raw if cut is None else raw[:cut]
        items = self._items(string, raw, output, speaker, style, sampling.seed)
        return Output(items, ids, logprobs, prompt_ids, raw, finish)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        output: Modality = "arbitrary",
        sampling: Sampling | Sequence[Sampling] | None = None,
        max_new_tokens: int = 200,
        stop: Stop | None = None,
        speaker: int | None = None,
        style: int | None = None,
    ) -> list[Output]:
        """`generate` for each of several prompts, with one sampling for all or one each.

        Each is computed by itself: its output is bit for bit what `generate` gives for it alone.
        """
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling | None) else list(sampling)
        if len(samplings) != len(prompts):
            raise ValueError(f"{len(samplings)} samplings for {len(prompts)} prompts; give one, or one a prompt")
        return [
            self.generate(prompt, output, each, max_new_tokens, stop, speaker, style)
            for prompt, each in zip(prompts, samplings, strict=True)
        ]

    def logprobs(self, prompt: Prompt, continuation: Prompt) -> LogProbs:
        """How likely `continuation` is after `prompt`: log-softmax over the full vocabulary, sum and mean a token.

        Both are tokenised together; tokens from the first that differs from the prompt's own count. Raises ValueError
        where no token is left to score, or the two exceed the context.
        """
        return self._score(prompt, [continuation])[0]

    def encode(self, source: audio.Source | Speech, rate: int | None = None, channel: int | None = None) -> Units:
        """Raw unit frames of sound: HuBERT at 25 Hz and, in Expressive, pitch at 12.5 Hz and style at 1 Hz.

        `source` is a file, an array at `rate` Hz or a Speech; see `audio.load`. Raises ValueError under 80 ms.
        """
        if isinstance(source, Speech):
            if source.samples is None:
                raise ValueError("this Speech holds tokens only; there is no sound to encode")
            source, rate = source.samples, source.rate
        return self.family.encode(audio.load(source, rate, channel))

    def decode(
        self,
        units: Units | str | Sequence[SpeechToken],
        speaker: int | None = None,
        style: int | None = None,
        seed: int = 0,
    ) -> Speech:
        """Speech of raw frames (Units: exactly their length) or of tokens (a string: durations are predicted)."""
        if isinstance(units, Units):
            samples = self.family.vocode_frames(units, speaker, style)
            return Speech(samples, RATE_HZ, format_speech(merge(units)))
        tokens = self._checked(parse_speech(units) if isinstance(units, str) else units)
        samples, _ = self.family.vocode(tokens, speaker, style, seed)
        return Speech(samples, RATE_HZ, format_speech(tokens))

    def transcribe(
        self,
        source: audio.Source | Speech,
        shots: Sequence[tuple[audio.Source | Speech, str]] = (),
        sampling: Sampling = GREEDY,
        max_new_tokens: int = 100,
    ) -> str:
        """The words of speech, in the paper's form: `[Speech]units[Text]<START Transcript>words<END>` for each shot.

        `shots` are (speech, words) examples; the paper uses 10. A model trained on the form (nano) needs none.
        """
        prompt: list[Text | Speech] = []
        for example, words in shots:
            prompt += [self._speech(example), Text(f"{ASR_OPEN}{words}{ASR_CLOSE}")]
        prompt += [self._speech(source), Text(ASR_OPEN)]
        stop = Stop(strings=(ASR_CLOSE,))
        return self.generate(prompt, "text", sampling, max_new_tokens, stop).text.strip()

    def speak(
        self,
        text: str,
        shots: Sequence[tuple[str, audio.Source | Speech]] = (),
        sampling: Sampling | None = None,
        max_new_tokens: int = 300,
        speaker: int | None = None,
        style: int | None = None,
    ) -> Speech:
        """Speech of text, in the paper's form: `[Text]words 'stop'[Speech]units` for each shot.

        `shots` are (words, speech) examples, the speech ending in the spoken word "stop" (the paper uses 10); the
        output then ends as the shots do. Without shots the form is `[Text]words[Speech]`, and an end token ends it.
        """
        flag = TTS_FLAG if shots else ""
        prompt: list[Text | Speech] = []
        for words, example in shots:
            prompt += [Text(words + flag), self._speech(example)]
        prompt.append(Text(text + flag))
        output = self.generate(
            prompt, "speech", sampling, max_new_tokens, Stop(ids_in_speech=True), speaker=speaker, style=style
        )
        for item in output:
            if isinstance(item, Speech):
                return item
        return Speech(np.zeros(0, np.float32), RATE_HZ, "")

    def classify(
        self,
        source: audio.Source | Speech,
        labels: Sequence[str],
        shots: Sequence[tuple[audio.Source | Speech, str]] = (),
    ) -> Classification:
        """Which of `labels` fits speech best, in the paper's form: `[Speech]units[Text]A:label` for each shot.

        The label with the highest log-probability (sum over its tokens) wins; the paper uses 30 shots.
        """
        if not labels:
            raise ValueError("classify needs at least one label")
        prompt: list[Text | Speech] = []
        for example, label in shots:
            prompt += [self._speech(example), Text(LABEL_FLAG + label)]
        prompt.append(self._speech(source))
        scores = self._score(prompt, [[Text(LABEL_FLAG + label)] for label in labels])
        sums = {label: score.sum for label, score in zip(labels, scores, strict=True)}
        return Classification(max(sums, key=lambda label: sums[label]), sums)

    def prompt_string(self, prompt: Prompt, output: Modality = "arbitrary") -> str:
        """The prompt string of a prompt, with markers where the modality changes. Audio is encoded to tokens."""
        return prompt if isinstance(prompt, str) else build(self._runs(prompt), output)

    def _runs(self, prompt: Sequence[Text | Speech]) -> list[Run]:
        runs: list[Run] = []
        for item in prompt:
            if isinstance(item, Text):
                spelled = [p for p in self.family.vocabulary.split(item.text) if isinstance(p, int)]
                if spelled:
                    raise ValueError(
                        f"Text holds the token {self.family.vocabulary.spelling(spelled[0])}; "
                        "use Speech(tokens=...) for speech, or give the whole prompt as a string"
                    )
                runs.append(TextRun(item.text))
            elif isinstance(item, Speech):
                tokens = parse_speech(item.tokens) if item.tokens is not None else merge(self.encode(item))
                runs.append(SpeechRun(tuple(self._checked(tokens))))
            else:
                raise ValueError(f"a prompt holds Text and Speech, got {type(item).__name__}: {item!r:.60}")
        return runs

    def _checked(self, tokens: Sequence[SpeechToken]) -> list[SpeechToken]:
        for token in tokens:
            self.family.vocabulary.id_of(token)
        return list(tokens)

    def _speech(self, source: audio.Source | Speech) -> Speech:
        return source if isinstance(source, Speech) else Speech(source)

    def _allowed(self, output: Modality, stop: Stop) -> Tensor:
        allowed = self.family.vocabulary.allowed(output).to(self.family.device)
        if output == "speech" and stop.ids_in_speech:
            allowed[list(stop.ids)] = True
        return allowed

    def _encode_prompt(self, string: str) -> list[int]:
        ids = self.family.tokenizer.encode(string)
        context = self.family.llama.config.max_position_embeddings
        if len(ids) >= context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the model's context is {context}; shorten it "
                "(speech takes about 20-30 tokens a second)"
            )
        return ids

    def _score(self, prompt: Prompt, continuations: Sequence[Prompt]) -> list[LogProbs]:
        """Likelihoods of several continuations; what they share with the prompt is computed once."""
        if isinstance(prompt, str):
            texts = [c if isinstance(c, str) else build(self._runs(c), "arbitrary") for c in continuations]
            string, strings = prompt, [prompt + text for text in texts]
        else:
            runs = self._runs(prompt)
            string = build(runs)
            strings = [string + c if isinstance(c, str) else build(runs + self._runs(c)) for c in continuations]
        prompt_ids = self._encode_prompt(string)
        wholes = [self._encode_prompt(s) for s in strings]
        shared = len(prompt_ids)
        for whole in wholes:
            same = 0
            while same < min(shared, len(whole)) and whole[same] == prompt_ids[same]:
                same += 1
            shared = same
        decoder = Decoder(self.family, max(map(len, wholes)))
        decoder.append(prompt_ids[:shared])
        scores = []
        for whole, text in zip(wholes, strings, strict=True):
            if len(whole) == shared:
                raise ValueError(f"the continuation adds no token to the prompt: {text[len(string) :]!r}")
            tokens = decoder.score(whole[shared:])
            scores.append(LogProbs(sum(tokens), sum(tokens) / len(tokens), tokens))
        return scores

    def _text(self, prompt_ids: list[int], ids: list[int]) -> str:
        return self.family.tokenizer.decode_continuation(prompt_ids, ids)

    def _items(
        self, prompt: str, raw: str, output: Modality, speaker: int | None, style: int | None, seed: int
    ) -> list[Text | Speech]:
        vocabulary = self.family.vocabulary
        items: list[Text | Speech] = []
        for index, run in enumerate(parse_output(raw, vocabulary, output)):
            if isinstance(run, TextRun):
                items.append(Text(run.text))
                continue
            before = ends_in(prompt, vocabulary) if index == 0 and raw.startswith("[") else ()
            samples, lengths = self.family.vocode([*before, *run.tokens], speaker, style, seed)
            start = sum(lengths[: sum(token.kind == "Hu" for token in before)])
            items.append(Speech(samples[start:], RATE_HZ, str(run)))
        return items


def load(name_or_folder: str = "nano", device: str = "cpu", dtype: str = "auto", progress: bool = True) -> SpiritLM:
    """Loads a Spirit LM: "nano", a folder (own or official layout), or an official name under SPIRITLM_CHECKPOINTS_DIR.

    `dtype` is the language model's: "auto" (as stored; float32 for a small model on a CPU), "float32", "bfloat16" or
    "float16". Raises CheckpointError (a ValueError) saying which file is missing or broken.
    """
    return SpiritLM(Family.load(name_or_folder, device, dtype, progress))


def as_samples(speech: Speech) -> Samples:
    """The samples of output speech as an array, float32 [N]."""
    samples: NDArray | Tensor | str | audio.Path | None = speech.samples
    if not isinstance(samples, np.ndarray):
        raise ValueError("this Speech holds no array of samples")
    return samples
