"""Offline Spirit LM: text and speech in any order in, text, speech or both out."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from torch import Tensor

from spiritrt import audio
from spiritrt.audio import RATE_HZ
from spiritrt.continuation import Continuation, run
from spiritrt.engine.engine import Engine
from spiritrt.engine.steps import Row
from spiritrt.items import Classification, LogProbs, Output, Prompt, Speech, Text
from spiritrt.models import checkpoints
from spiritrt.models.family import Family
from spiritrt.sampling import GREEDY, Sampling
from spiritrt.stopping import Stop
from spiritrt.tokens.prompt import Run, SpeechRun, TextRun, build, ends_in, modality_at_end, parse_output
from spiritrt.tokens.units import Units, merge
from spiritrt.tokens.vocabulary import EOS, Modality, SpeechToken, format_speech, parse_speech

ASR_OPEN, ASR_CLOSE = "<START Transcript>", "<END>"
TTS_FLAG = " 'stop'"
LABEL_FLAG = "A:"
SLOTS = 32  # prompts of a batch that are continued at once


class SpiritLM:
    """A Spirit LM for offline use; `spiritrt.load` makes one. `family` holds its parts. Not for two threads at once."""

    def __init__(self, family: Family, weights: str = "auto", kernels: Mapping[str, str] | None = None) -> None:
        """`weights` and `kernels` are those of its `Engine`."""
        self.family = family
        self._weights, self._kernels = weights, kernels

    @cached_property
    def engine(self) -> Engine:
        """The language model at work, loaded when it is first used."""
        return Engine(self.family, SLOTS, weights=self._weights, kernels=self._kernels, progress=self.family.progress)

    def generate(
        self,
        prompt: Prompt,
        output: Modality = "arbitrary",
        sampling: Sampling | None = None,
        max_new_tokens: int = 200,
        stop: Stop | None = None,
        speaker: int | None = None,
        style: int | None = None,
        suppress_tokens: Sequence[int] = (),
    ) -> Output:
        """Continues a prompt in text, speech or whatever the model likes ("arbitrary").

        `prompt` is a list of Text and Speech, or a prompt string like `[Speech][Hu99]...`, which is used as it is.
        Where the prompt ends in speech and the output begins with it, both are vocoded together and the prompt's
        samples cut off. `speaker` and `style` choose the voice. The ids `suppress_tokens` are never drawn.

        Raises ValueError for an unknown output, a prompt that fills the context or holds an unknown token (`[Hu600]`),
        unusable audio, or an unknown voice.
        """
        return self.generate_batch([prompt], output, sampling, max_new_tokens, stop, speaker, style, suppress_tokens)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        output: Modality = "arbitrary",
        sampling: Sampling | Sequence[Sampling] | None = None,
        max_new_tokens: int = 200,
        stop: Stop | None = None,
        speaker: int | None = None,
        style: int | None = None,
        suppress_tokens: Sequence[int] = (),
    ) -> list[Output]:
        """`generate` for each of several prompts, with one sampling for all or one each.

        They are continued together, and each output is bit for bit what `generate` gives for its prompt alone.
        """
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling | None) else list(sampling)
        if len(samplings) != len(prompts):
            raise ValueError(f"{len(samplings)} samplings for {len(prompts)} prompts; give one, or one a prompt")
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be a whole number from 1, got {max_new_tokens}")
        if not isinstance(stop, Stop | None):
            raise ValueError(f"stop must be a Stop, such as Stop(strings=('<END>',)), got {stop!r}")
        self.family.check_voice(speaker, style)
        stop = stop or Stop()
        strings = [self.prompt_string(prompt, output) for prompt in prompts]
        allowed = self._allowed(output, stop, suppress_tokens)
        continuations = [
            self._continuation(self._encode_prompt(string), allowed, each or Sampling(), max_new_tokens, stop)
            for string, each in zip(strings, samplings, strict=True)
        ]
        run(self.engine, continuations)
        return [
            self._output(string, done, output, stop, speaker, style)
            for string, done in zip(strings, continuations, strict=True)
        ]

    def logprobs(self, prompt: Prompt, continuation: Prompt) -> LogProbs:
        """How likely `continuation` is after `prompt`: log-softmax over the full vocabulary, sum and mean a token.

        Both are tokenised together; tokens from the first that differs from the prompt's own count. Where a list of
        items continues in the other modality, the marker between belongs to the prompt: it says which modality is
        wanted. A marker that a string spells counts; a continuation may hold anything, `[Hu600]` as text. Raises
        ValueError for an unknown token in the prompt, where no token is left to score, or the two exceed the context.
        """
        opens: Modality = "arbitrary"
        if continuation and not isinstance(continuation, str):
            opens = "text" if isinstance(continuation[0], Text) else "speech"
        return self._score(prompt, [continuation], opens)[0]

    def encode(self, source: audio.Source | Speech, rate: int | None = None, channel: int | None = None) -> Units:
        """Raw unit frames of sound: HuBERT at 25 Hz and, in Expressive, pitch at 12.5 Hz and style at 1 Hz.

        `source` is a file, an array at `rate` Hz or a Speech; see `audio.load`. Raises ValueError under 80 ms.
        """
        if isinstance(source, Speech):
            if source.samples is None:
                raise ValueError("this Speech holds tokens only; there is no sound to encode")
            channel = source.channel if channel is None else channel
            return self.family.encode(audio.load(source.samples, source.rate, channel))
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
            if not self.family.expressive and (units.pitch is not None or units.style is not None):
                raise ValueError(f"these units have pitch or style, and {self.family.name} knows neither")
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
        Raises ValueError for an empty text, and what `generate` raises.
        """
        if not text.strip():
            raise ValueError(f"there is nothing to say: the text is {text!r}")
        flag = TTS_FLAG if shots else ""
        prompt: list[Text | Speech] = []
        for words, example in shots:
            prompt += [Text(words + flag), self._speech(example)]
        prompt.append(Text(text + flag))
        # after the speech of a shot comes the text of the next: its marker ends the output as well
        stop = Stop(ids=(EOS, self.family.vocabulary.text_marker), ids_in_speech=True)
        output = self.generate(prompt, "speech", sampling, max_new_tokens, stop, speaker=speaker, style=style)
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

        The label with the highest log-probability (sum over the tokens of `A:label`) wins; the paper uses 30 shots.
        """
        if isinstance(labels, str):
            raise ValueError(f"labels must be a list of strings, got {labels!r}")
        if not labels:
            raise ValueError("classify needs at least one label")
        prompt: list[Text | Speech] = []
        for example, label in shots:
            prompt += [self._speech(example), Text(LABEL_FLAG + label)]
        prompt.append(self._speech(source))
        scores = self._score(prompt, [[Text(LABEL_FLAG + label)] for label in labels], "text")
        sums = {label: score.sum for label, score in zip(labels, scores, strict=True)}
        return Classification(max(sums, key=lambda label: sums[label]), sums)

    def prompt_string(self, prompt: Prompt, output: Modality = "arbitrary") -> str:
        """The prompt string of a prompt, with markers where the modality changes. Audio is encoded to tokens.

        Raises ValueError for a string that holds an unknown token, and for items that cannot be in a prompt.
        """
        if isinstance(prompt, str):
            self.family.vocabulary.check_prompt(prompt)
            return prompt
        return build(self._runs(prompt), output)

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

    def _continuation(
        self, prompt_ids: list[int], allowed: Tensor, sampling: Sampling, max_new_tokens: int, stop: Stop
    ) -> Continuation:
        def reason(ids: list[int]) -> str | None:
            return stop.reason(ids[-stop.window - 1 :]) or self._content_reason(prompt_ids, ids, stop)

        return Continuation(prompt_ids, allowed, sampling, max_new_tokens, reason)

    def _output(
        self, prompt: str, done: Continuation, output: Modality, stop: Stop, speaker: int | None, style: int | None
    ) -> Output:
        prompt_ids = list(done.prompt_ids)
        raw = self._text(prompt_ids, done.ids)
        cut = stop.cut(raw)
        raw = raw if cut is None else raw[:cut]
        items = self._items(prompt, raw, output, speaker, style, done.sampling.seed)
        assert done.finish is not None
        return Output(items, done.ids, done.logprobs, prompt_ids, raw, done.finish)

    def _content_reason(self, prompt_ids: list[int], ids: list[int], stop: Stop) -> str | None:
        """The stop rules that look at what the ids mean: "string", "silence" or None."""
        if stop.strings:
            # a token before the tail, since a decoder drops the space that opens a string
            tail = [*prompt_ids[-1:], *ids][-max(32, 2 * max(map(len, stop.strings))) - 1 :]
            if stop.cut(self._text(tail[:1], tail[1:])) is not None:
                return "string"
        speech = self.family.vocabulary.speech_token
        if stop.silence_s and speech(ids[-1]) is not None:
            tokens = [token for token in map(speech, ids) if token is not None]
            if self.family.trailing_silence_s(tokens) >= stop.silence_s:
                return "silence"
        return None

    def _allowed(self, output: Modality, stop: Stop, suppress_tokens: Sequence[int]) -> Tensor:
        allowed = self.family.vocabulary.allowed(output)
        rows = self.family.vocabulary.rows
        for name, ids in (("stop ids", stop.ids), ("suppress_tokens", suppress_tokens)):
            if any(not 0 <= i < rows for i in ids):
                raise ValueError(f"{name} must be from 0 to {rows - 1}, got {ids}")
        ends_speech = self.family.checkpoint.reply == "chain" if stop.ids_in_speech is None else stop.ids_in_speech
        if output == "speech" and ends_speech:
            allowed[list(stop.ids)] = True
        allowed[list(suppress_tokens)] = False
        if not allowed.any():
            raise ValueError("suppress_tokens leaves no token to draw")
        return allowed

    def _encode_prompt(self, string: str) -> list[int]:
        ids = self.family.tokenizer.encode(string)
        context = self.family.lm_config.max_position_embeddings
        if len(ids) >= context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the model's context is {context}; shorten it "
                "(speech takes about 20-30 tokens a second)"
            )
        return ids

    def _score(self, prompt: Prompt, continuations: Sequence[Prompt], opens: Modality) -> list[LogProbs]:
        """Likelihoods of several continuations, which open in one modality ("arbitrary": strings).

        What they share with the prompt is computed once.
        """
        vocabulary, string = self.family.vocabulary, self.prompt_string(prompt)
        string += build((), opens, modality_at_end(string, vocabulary))
        after = modality_at_end(string, vocabulary)
        strings = [string + (c if isinstance(c, str) else build(self._runs(c), after=after)) for c in continuations]
        prompt_ids = self._encode_prompt(string)
        wholes = [self._encode_prompt(s) for s in strings]
        shared = len(prompt_ids)
        for whole in wholes:
            same = 0
            while same < min(shared, len(whole)) and whole[same] == prompt_ids[same]:
                same += 1
            shared = same
        scores = []
        slot = self.engine.open()
        try:
            if shared > 1:
                self.engine.step([Row(slot, tuple(prompt_ids[: shared - 1]), draw=False)])
            for whole, text in zip(wholes, strings, strict=True):
                if len(whole) == shared:
                    raise ValueError(f"the continuation adds no token to the prompt: {text[len(string) :]!r}")
                tokens = self.engine.score(slot, whole[shared - 1 :])
                scores.append(LogProbs(sum(tokens), sum(tokens) / len(tokens), tokens))
        finally:
            self.engine.close(slot)
        return scores

    def _text(self, prompt_ids: list[int], ids: list[int]) -> str:
        return self.family.tokenizer.decode_continuation(prompt_ids, ids)

    def _items(
        self, prompt: str, raw: str, output: Modality, speaker: int | None, style: int | None, seed: int
    ) -> list[Text | Speech]:
        if output == "text":  # pieces that happen to spell a token are text all the same
            return [Text(raw)] if raw.strip() else []
        vocabulary = self.family.vocabulary
        items: list[Text | Speech] = []
        for index, part in enumerate(parse_output(raw, vocabulary, output)):
            if isinstance(part, TextRun):
                items.append(Text(part.text))
                continue
            before = ends_in(prompt, vocabulary) if index == 0 and raw.startswith("[") else ()
            samples, lengths = self.family.vocode([*before, *part.tokens], speaker, style, seed)
            start = sum(lengths[: sum(token.kind == "Hu" for token in before)])
            items.append(Speech(samples[start:], RATE_HZ, str(part)))
        return items


def load(
    name_or_folder: str = "nano",
    device: str = "cpu",
    dtype: str = "auto",
    progress: bool = True,
    lazy: bool = False,
    pitch_tracker: str = "fcpe",
    weights: str = "auto",
    kernels: Mapping[str, str] | None = None,
) -> SpiritLM:
    """Loads a Spirit LM: "nano", a folder (own or official layout), or an official name under SPIRITLM_CHECKPOINTS_DIR.

    `dtype` is the language model's: "auto" (as stored; float32 for a small model on a CPU), "float32", "bfloat16" or
    "float16"; `weights` ("fp32", "bf16", "fp16", "int8" or "fp8") goes before it, and quantized ones are kept on disk
    for the next time. `kernels` chooses variants of ops by name (`spiritrt kernels list`). With `lazy` each part is
    loaded when it is first used: `encode` and `decode` do without the language model. `pitch_tracker` ("fcpe" or
    "yaapt") matters to Expressive alone. Raises CheckpointError (a ValueError) for a file that is missing or broken.
    """
    lm = SpiritLM(Family(checkpoints.find(name_or_folder), device, dtype, progress, pitch_tracker), weights, kernels)
    if not lazy:
        lm.family.load_all()
        _ = lm.engine
    return lm
