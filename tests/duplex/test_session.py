"""The session's state machine, in a world without models: what its context holds, what is handed out, what is kept."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from session_rig import HOP, VOCABULARY, World, frames_of, language, replies_in

from spiritrt.duplex.config import EchoConfig, ReplyPolicy, SessionConfig, TurnConfig
from spiritrt.duplex.events import AudioOut, Interrupted, ReplyEnded, Resumed, SpeechStarted, SpeechStopped, TextOut
from spiritrt.duplex.session import UNITS_DUE_S, Overload
from spiritrt.duplex.turns import SilenceEndpoint
from spiritrt.tokens.vocabulary import EOS

SECOND = 16000
WINDOW = 200  # tokens: a few turns and replies fill it
EAGER = SilenceEndpoint(pause_ms=30, endpoint_ms=60)  # sure of itself before speech has died away


def world(reply: ReplyPolicy = "chain", window: int = 1200, **config: object) -> World:
    settings = {"seed": 2, **config}
    return World(SessionConfig(reply=reply, **settings), language(window=window))  # type: ignore[arg-type]


def say(w: World, seconds: float, speech: bool = True, settle: bool = True) -> None:
    for _ in range(round(seconds * 50)):
        w.hear(320, speech)
        if settle:
            w.settle()


def listen(w: World, seconds: float) -> None:
    """The person is silent while the loudspeaker plays what comes."""
    for _ in range(round(seconds * 50)):
        w.hear(320, False)
        w.settle()
        w.played(min(w.sent(), w.session.played_to + 320))
        w.settle()
        if w.session.over_due:
            w.over()


def speech_in(ids: Sequence[int]) -> list[int]:
    return [i for i in ids if VOCABULARY.speech_token(i) is not None]


def test_a_turn_is_heard_answered_and_closed() -> None:
    w = world()
    say(w, 0.5, False)
    say(w, 2.0)
    assert w.session.state == "listening"
    say(w, 0.4, False)
    assert w.session.state == "thinking_ahead"
    assert not any(isinstance(event, TextOut | AudioOut) for event in w.events), "a draft stays inside"
    say(w, 0.4, False)
    assert w.session.state == "speaking"
    listen(w, 14)
    assert w.session.state == "listening"
    started, stopped = (next(e for e in w.events if isinstance(e, kind)) for kind in (SpeechStarted, SpeechStopped))
    assert abs(started.began - SECOND // 2) <= 512 and abs(stopped.ended - 2.5 * SECOND) <= 512
    ended = w.events[-1]
    assert isinstance(ended, ReplyEnded) and ended.samples == w.sent() > 0
    assert w.main == list(w.session.context) and w.main[-1] == EOS


def test_listening_feeds_the_turn_once_and_to_the_sample() -> None:
    w = world()
    say(w, 0.3, False)
    say(w, 3.0)
    say(w, 0.7, False)
    begin, end = w.pieces[0][0], w.pieces[-1][1]
    assert 0.3 * SECOND - 0.13 * SECOND - 512 <= begin <= 0.3 * SECOND
    assert end <= 3.3 * SECOND + 0.12 * SECOND + 512, "silence after the tail is not part of the turn"
    units = speech_in(w.main)
    assert len(units) >= 3.0 * 25 - 1


def test_what_was_heard_is_due_since_it_was_heard() -> None:
    w = world()
    say(w, 1.0)
    assert w.session.due(w.time) == pytest.approx(w.time + UNITS_DUE_S), "nothing waits"
    begin = w.time
    say(w, 0.6, settle=False)
    assert begin < w.session.due(w.time) - UNITS_DUE_S <= begin + 0.18, "as soon as there was a piece to encode"
    late = w.session.due(w.time)
    assert w.work(("encode",)) and w.session.due(w.time) == late, "its tokens are still to be fed"
    w.settle()
    assert w.session.due(w.time) == pytest.approx(w.time + UNITS_DUE_S)


def test_what_is_thought_ahead_is_dropped_where_the_person_goes_on() -> None:
    w = world()
    say(w, 1.0)
    say(w, 0.4, False)
    assert w.draft is not None
    before = list(w.main)
    say(w, 1.0)
    assert w.draft is None and w.session.state == "listening"
    assert w.main[: len(before)] == before and w.session.stats.dropped_drafts == 1
    assert w.session.stats.wasted_tokens > 0
    assert w.kinds() == ["SpeechStarted"]


def test_an_endpoint_that_is_sure_at_once_is_not_interrupted_by_the_turn_it_ends() -> None:
    w = World(SessionConfig("continuation", seed=2), language(), EAGER)
    say(w, 1.0)
    listen(w, 14)
    assert w.kinds() == ["SpeechStarted", "SpeechStopped", "ReplyEnded"]
    stopped = next(e for e in w.events if isinstance(e, SpeechStopped))
    assert stopped.at - stopped.ended <= 2 * 512
    assert w.session.stats.drafts == 1, "a pause within speech is thought about once"


@pytest.mark.parametrize("reply", ["continuation", "chain"])
def test_an_interruption_cuts_the_context_at_the_token_last_heard(reply: ReplyPolicy) -> None:
    w = world(reply)
    say(w, 1.0)
    say(w, 0.7, False)
    turn = w.session._reply.start  # type: ignore[union-attr]
    listen(w, 0.6)
    sound = w.session._reply.sound  # type: ignore[union-attr]
    tokens = list(w.session._reply.tokens.speech)  # type: ignore[union-attr]
    say(w, 0.4)
    (cut,) = w.interruptions
    assert 0 < cut.heard == w.session.played_to < w.sent()
    heard = tokens[: sound.tokens_heard(cut.heard)]
    ends = np.cumsum([640 * (1 + (t - VOCABULARY.first_unit) % 4) for t in tokens])
    assert len(heard) == int(np.searchsorted(ends, cut.heard)) + 1, "exact to the token"
    context = w.main[turn:]
    if reply == "chain":
        text, _, rest = (context[: context.index(VOCABULARY.speech_marker)], 0, context)
        assert 20 not in text, "the answer's text goes, since not all of it was heard"
        assert rest[len(text) + 1 :][: len(heard) + 1] == [*heard, EOS]
    else:
        assert context[: len(heard) + 1] == [*heard, EOS]


def test_an_interruption_before_any_sound_lets_the_turn_go_on() -> None:
    w = world()
    say(w, 1.0)
    before = [i for i in w.main]
    say(w, 0.7, False)
    say(w, 0.6)
    assert w.interruptions[0].heard == 0
    say(w, 0.7, False)
    assert w.main[: len(before)] == before
    assert w.main.count(VOCABULARY.speech_marker) <= 2, "one turn, and one reply"
    assert w.kinds().count("SpeechStarted") == 2


@pytest.mark.parametrize("ms", [80, 160])
def test_a_backchannel_lets_the_reply_go_on_at_the_same_sample(ms: int) -> None:
    def converse(backchannel: bool) -> World:
        w = world("continuation")
        say(w, 1.0)
        say(w, 0.7, False)
        listen(w, 0.6)
        at = w.session.played_to
        if backchannel:
            say(w, ms / 1000)
            say(w, 0.4, False)
            resumed = next(e for e in w.events if isinstance(e, Resumed))
            assert resumed.sample == at == w.session.played_to
        listen(w, 12)
        return w

    quiet, disturbed = converse(False), converse(True)
    assert disturbed.session.stats.false_alarms == 1 and not disturbed.interruptions
    assert quiet.session.context == disturbed.session.context
    np.testing.assert_array_equal(*(np.concatenate([e.pcm for e in w.sound]) for w in (quiet, disturbed)))


def test_while_ducked_nothing_is_decoded_or_handed_out() -> None:
    w = world("continuation", lead_ms=4000)
    say(w, 1.0)
    say(w, 0.7, False, settle=False)
    w.work()
    say(w, 0.1, settle=False)
    assert w.session.state == "ducked"
    drawn, sent = w.session.stats.drawn_tokens, w.sent()
    w.settle()
    assert w.session.stats.drawn_tokens <= drawn + 1 and w.sent() == sent


@pytest.mark.parametrize("think_ahead", [True, False])
@pytest.mark.parametrize("lazy", [True, False])
def test_thinking_ahead_and_slowness_change_no_token(think_ahead: bool, lazy: bool) -> None:
    def converse(think_ahead: bool, lazy: bool) -> World:
        w = world(think_ahead=think_ahead)
        for seconds, speech in ((1.0, True), (0.3, False), (1.3, True), (0.7, False)):
            say(w, seconds, speech, settle=not lazy)
        w.settle()
        listen(w, 14)
        return w

    eager, other = converse(True, False), converse(think_ahead, lazy)
    assert eager.session.context == other.session.context
    np.testing.assert_array_equal(*(np.concatenate([e.pcm for e in w.sound]) for w in (eager, other)))


def test_a_revised_turn_is_corrected_from_the_first_token_that_differs() -> None:
    plain, revised = world(), world(revise=True)
    committed = []
    for w in (plain, revised):
        say(w, 1.2)
        say(w, 0.3, False)
        say(w, 0.8)
        committed.append(list(w.main))
        say(w, 0.7, False)
        listen(w, 14)
    assert committed[0] == committed[1], "a turn that goes on keeps what was committed"
    turn = [i - VOCABULARY.first_unit for i in revised.main if 0 <= i - VOCABULARY.first_unit < 25]
    before = [i - VOCABULARY.first_unit for i in plain.main if 0 <= i - VOCABULARY.first_unit < 25]
    assert len(turn) == len(before) and turn[::5] == [0] * len(turn[::5])
    assert [a for n, a in enumerate(turn) if n % 5] == [b for n, b in enumerate(before) if n % 5]
    assert revised.main == list(revised.session.context)


def test_a_reply_in_text_is_handed_out_whole_and_speech_during_it_waits() -> None:
    w = world("text")
    say(w, 1.0)
    say(w, 0.7, False, settle=False)
    say(w, 0.6, settle=False)  # while the reply is still being made
    assert w.session.state == "speaking"
    w.settle()
    assert w.session.over_due
    w.over()
    texts = "".join(e.text for e in w.events if isinstance(e, TextOut) and e.source == "reply")
    assert texts and not w.sound
    say(w, 0.7, False)
    assert w.kinds().count("SpeechStarted") == 2, "what was said meanwhile is a turn"
    assert w.kinds()[-1] != "ReplyEnded" or w.kinds().count("ReplyEnded") == 2


def test_an_hour_of_turns_keeps_the_prefix_and_stays_within_the_window() -> None:
    w = world("continuation", window=700, max_reply_s=4.0)
    turns = 0
    while w.clock < 3600 * SECOND:
        say(w, 1.5)
        say(w, 0.7, False)
        listen(w, 5)
        turns += 1
        assert len(w.main) <= 700 and w.main[:3] == list(w.language.prefix)
    assert w.evictions > 100 and w.session.stats.evicted_tokens > 700 * 50
    assert w.main == list(w.session.context)
    assert w.kinds().count("ReplyEnded") == turns >= 500


@pytest.mark.parametrize("lazy", [False, True])
def test_a_reply_ends_at_its_longest_to_the_sample_and_its_rest_leaves_the_context(lazy: bool) -> None:
    w = world("continuation", max_reply_s=0.5)
    say(w, 1.0)
    say(w, 0.7, False, settle=not lazy)
    w.settle()
    listen(w, 3)
    ended = next(e for e in w.events if isinstance(e, ReplyEnded))
    assert (ended.reason, ended.samples) == ("length", SECOND // 2)
    assert sum(len(e.pcm) for e in w.sound) == SECOND // 2
    (units,) = replies_in(w.main)
    ends = np.cumsum([HOP * frames_of(unit) for unit in units])
    assert ends[-2] < SECOND // 2 <= ends[-1], "what was cut off in its sound is no token of the context"


def test_a_reply_ends_with_so_much_silence_at_its_end() -> None:
    w = world("continuation", silence_s=0.2)
    w.speaks = [40, 41, 42, *[58] * 20]  # the last of it silent, three frames each
    say(w, 1.0)
    say(w, 0.7, False)
    listen(w, 5)
    ended = next(e for e in w.events if isinstance(e, ReplyEnded))
    sounding = HOP * sum(frames_of(unit) for unit in (40, 41, 42))
    assert (ended.reason, ended.samples) == ("silence", sounding + SECOND // 5)


def test_a_client_that_takes_the_least_ahead_gets_all_of_it() -> None:
    ahead = world("continuation")
    least = world("continuation", send_ahead_ms=80)
    for w in (ahead, least):
        say(w, 1.0)
        say(w, 0.7, False)
        listen(w, 14)
        assert w.kinds()[-1] == "ReplyEnded"
    assert max(len(e.pcm) for e in least.sound) <= 0.08 * SECOND
    np.testing.assert_array_equal(*(np.concatenate([e.pcm for e in w.sound]) for w in (ahead, least)))


def test_a_turn_without_end_is_ended() -> None:
    w = world(turns=TurnConfig(max_turn_s=3.0))
    say(w, 3.5)
    assert w.kinds()[:2] == ["SpeechStarted", "SpeechStopped"]
    say(w, 1.0)
    assert [e.heard for e in w.interruptions] == [0], "who goes on takes the floor again"
    assert w.kinds().count("SpeechStarted") == 2


def test_acknowledgements_beyond_what_was_handed_out_are_refused() -> None:
    w = world()
    with pytest.raises(ValueError, match=r"played\(1\): only 0 samples have been handed out"):
        w.played(1)


def test_the_echo_gate_lets_only_louder_sound_through() -> None:
    gated = world("continuation", echo=EchoConfig(cancelled=False, gain_db=0.0, margin_db=200.0 - 140.0))
    open_ = world("continuation")
    for w in (gated, open_):
        say(w, 1.0)
        say(w, 0.7, False)
        listen(w, 0.6)
        say(w, 0.6)
    assert open_.interruptions and not gated.interruptions
    assert gated.session.state == "speaking"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"reply": "shout"}, "reply must be one of continuation, chain, text, got 'shout'"),
        ({"lead_ms": 10}, "lead_ms must be at least 100"),
        ({"send_ahead_ms": 1000}, "send_ahead_ms from 80 to lead_ms, got 640 and 1000"),
        ({"max_reply_s": 0}, "max_reply_s must be positive, got 0"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"turns": 1}, r"turns must be TurnConfig\(...\), got 1"),
        ({"echo": None}, r"echo must be EchoConfig\(...\), got None"),
    ],
)
def test_session_settings_are_checked(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionConfig(**config)


def test_a_context_too_small_to_talk_in_is_refused() -> None:
    with pytest.raises(ValueError, match="a context of 200 tokens with a prefix of 3 has no room"):
        world(window=200)


class Conversations(RuleBasedStateMachine):
    """Any order of microphone, work, acknowledgements; then the same inputs again, on an infinitely fast machine."""

    @initialize(
        reply=st.sampled_from(["continuation", "chain", "text"]),
        think_ahead=st.booleans(),
        seed=st.integers(0, 9),
        cancelled=st.booleans(),
        revise=st.booleans(),
        ahead_ms=st.sampled_from([80, 480]),
        endpoint=st.sampled_from([None, EAGER]),
    )
    def begin(
        self,
        reply: ReplyPolicy,
        think_ahead: bool,
        seed: int,
        cancelled: bool,
        revise: bool,
        ahead_ms: int,
        endpoint: SilenceEndpoint | None,
    ) -> None:
        turns = TurnConfig(max_turn_s=6.0)
        echo = EchoConfig(cancelled=cancelled, gain_db=-60.0, margin_db=0.0)
        self.config = SessionConfig(
            reply=reply,
            think_ahead=think_ahead,
            revise=revise,
            seed=seed,
            turns=turns,
            echo=echo,
            max_reply_s=5.0,
            max_text_tokens=20,
            send_ahead_ms=ahead_ms,
        )
        self.endpoint = endpoint
        self.world = World(self.config, language(window=WINDOW), endpoint)
        self.inputs: list[tuple[str, int, bool]] = []
        self.overloaded = False
        self.checked = 0
        self.queue: list[tuple[int, np.ndarray]] = []

    def _do(self, kind: str, number: int = 0, speech: bool = False) -> None:
        if self.overloaded:
            return
        try:
            apply(self.world, kind, number, speech)
        except Overload:  # nothing was encoded for seconds: such a session is closed
            self.overloaded = True
        else:
            self.inputs.append((kind, number, speech))

    @rule(windows=st.integers(1, 30), speech=st.booleans(), cut=st.sampled_from([320, 512, 777, 4000]))
    def hear(self, windows: int, speech: bool, cut: int) -> None:
        left = 0 if self.overloaded else windows * 512
        while left > 0 and self.world.session.room >= cut:
            self._do("hear", min(cut, left), speech)
            left -= cut

    @rule(times=st.integers(1, 40), kinds=st.sampled_from([("encode",), ("cache",), ("vocode",), ("cache", "vocode")]))
    def work(self, times: int, kinds: tuple[str, ...]) -> None:
        for _ in range(times):
            self.world.work(kinds)

    @rule(speech=st.integers(6, 60), silence=st.integers(6, 30), settled=st.booleans())
    def take_a_turn(self, speech: int, silence: int, settled: bool) -> None:
        """Speech, and a silence that may be its end."""
        for _ in range(speech):
            self.hear(1, True, 512)
        if settled:
            self.world.settle()
        for _ in range(silence):
            self.hear(1, False, 512)

    @rule(windows=st.integers(5, 60), settled=st.booleans())
    def listen(self, windows: int, settled: bool) -> None:
        """Silence, in which the loudspeaker plays on."""
        for _ in range(windows):
            self.hear(1, False, 512)
            if settled:
                self.world.settle()
            if self.world.session.state != "ducked":
                self._play(512)
            if self.world.session.over_due:
                self._do("over")

    @rule(windows=st.integers(2, 14))
    def speak_over(self, windows: int) -> None:
        """Speech of a length that may be a backchannel or an interruption, and a short silence."""
        for _ in range(windows):
            self.hear(1, True, 512)
        for _ in range(8):
            self.hear(1, False, 512)

    @rule()
    def work_off(self) -> None:
        self.world.settle()

    @precondition(lambda self: self.world.session.state != "ducked")
    @rule(share=st.floats(0, 1))
    def play(self, share: float) -> None:
        """The loudspeaker plays a share of what it has."""
        self._drain()
        self._play(round(share * sum(len(pcm) for _, pcm in self.queue)))

    def _play(self, count: int) -> None:
        self._drain()
        position = None
        while self.queue and count > 0:
            start, pcm = self.queue.pop(0)
            taken = min(count, len(pcm))
            position = start + taken
            if taken < len(pcm):
                self.queue.insert(0, (position, pcm[taken:]))
            count -= taken
        if position is not None:
            self._do("played", position - self.world.session.reply_offset)

    @precondition(lambda self: self.world.session.over_due)
    @rule()
    def end(self) -> None:
        self._do("over")

    def _drain(self) -> None:
        """The client reads its events."""
        for event in self.world.events[self.checked :]:
            if isinstance(event, AudioOut):
                self.queue.append((event.start_sample, event.pcm))
            elif isinstance(event, Interrupted):
                self.queue.clear()
        self.checked = len(self.world.events)

    @invariant()
    def buffers_are_bounded(self) -> None:
        if hasattr(self, "world"):
            for name, (held, most) in self.world.session.held.items():
                assert held <= most, f"{name} holds {held} of {most}"

    @invariant()
    def sound_is_handed_out_once_and_in_order(self) -> None:
        if not hasattr(self, "world"):
            return
        position, value = 0, 0.0
        for event in self.world.events:
            if isinstance(event, AudioOut):
                assert event.start_sample == position
                if event.pcm[0] == 0:
                    value = 0.0
                np.testing.assert_array_equal(event.pcm, np.arange(value, value + len(event.pcm)))
                position += len(event.pcm)
                value += len(event.pcm)

    def teardown(self) -> None:
        if not hasattr(self, "world") or self.overloaded:
            return
        w = self.world
        w.settle()
        assert w.main == list(w.session.context), "the cache holds what the session thinks it does"
        again = World(self.config, language(window=WINDOW), self.endpoint)
        for kind, number, speech in self.inputs:
            while (kind == "over" and not again.session.over_due) or (kind == "played" and again.reply_sent < number):
                assert again.work(), "what was handed out is handed out again"
            apply(again, kind, number, speech)
            again.settle()
        assert again.session.finished_context == w.session.finished_context, "speed changes no token"
        assert decisions(again) == decisions(w)
        self._drain()
        assert_heard_alike(w, again)
        assert_only_what_was_heard(w)


def apply(w: World, kind: str, number: int, speech: bool) -> None:
    if kind == "hear":
        w.hear(number, speech)
    elif kind == "played":
        w.played(w.session.reply_offset + number)
    else:
        w.over()


def decisions(w: World) -> list[object]:
    """All that the session decided; output positions count what was handed out, which depends on the machine."""
    events = [e for e in w.events if not isinstance(e, AudioOut | TextOut)]
    return [replace(e, sample=0) if isinstance(e, Resumed) else e for e in events]


def assert_heard_alike(w: World, again: World) -> None:
    """Sound is the same wherever both worlds got as far; output positions differ by what nobody heard."""
    first, second = (replies_of(each) for each in (w, again))
    for one, other in zip(first, second, strict=False):
        length = min(len(one), len(other))
        np.testing.assert_array_equal(one[:length], other[:length])


def replies_of(w: World) -> list[np.ndarray]:
    replies: list[list[np.ndarray]] = []
    for event in w.sound:
        if event.pcm[0] == 0:
            replies.append([])
        replies[-1].append(event.pcm)
    return [np.concatenate(reply) for reply in replies]


def assert_only_what_was_heard(w: World) -> None:
    """The context holds of every reply the tokens that sounded: all of them, to the last, and no other."""
    heard = [
        e.heard if isinstance(e, Interrupted) else e.samples
        for e in w.events
        if isinstance(e, ReplyEnded | Interrupted)
    ]
    heard = [samples for samples in heard if samples]
    replies = replies_in(w.session.finished_context)
    assert w.evictions or len(replies) == len(heard)
    if w.evictions:
        replies = replies[1:]  # of the oldest, the beginning may be gone
    for units, samples in zip(replies[::-1], heard[::-1], strict=False):
        ends = np.cumsum([HOP * frames_of(unit) for unit in units])
        assert ends[-1] >= samples > ends[-1] - HOP * frames_of(units[-1])


TestConversations = Conversations.TestCase
TestConversations.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
