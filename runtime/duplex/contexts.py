"""The contexts of one session: the main one, and the draft on which a reply is thought ahead. Work on them queues."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from spiritrt.duplex.config import SessionConfig
from spiritrt.duplex.context import Context
from spiritrt.duplex.reply import Reply
from spiritrt.duplex.reply_tokens import Language
from spiritrt.duplex.work import Adopt, CacheWork, Drop, Evict, Feed, ForgetDrawn, Fork, Truncate
from spiritrt.tokens.vocabulary import EOS

TOKENS_A_SECOND = 40  # of speech: more than any has


class Contexts:
    """See the module. `reply_tokens`: ids that a reply may have.

    They are made room for before a reply begins, so that what is dropped of the past never depends on how far decoding
    has gone ahead. Raises ValueError where the window is too small for a turn and a reply.
    """

    def __init__(self, language: Language, config: SessionConfig) -> None:
        window = min(config.context_tokens or language.window, language.window)
        texts = config.max_text_tokens
        if window < len(language.prefix) + 4 * texts:
            raise ValueError(
                f"a context of {window} tokens with a prefix of {len(language.prefix)} has no room for a conversation "
                f"with texts of up to {texts} tokens: shorten the prefix or max_text_tokens"
            )
        wanted = texts + round(config.max_reply_s * TOKENS_A_SECOND)
        self.reply_tokens = min(wanted, (window - len(language.prefix)) // 2)
        self._language = language
        self._queue: deque[CacheWork] = deque()
        self.main = Context(self._queue, language.prefix, window)
        self._draft: Context | None = None

    @property
    def settled(self) -> bool:
        """Whether no work waits."""
        return not self._queue

    def next_work(self) -> CacheWork | None:
        """What waits longest."""
        return self._queue[0] if self._queue else None

    def done(self) -> CacheWork:
        """Takes what waits longest off the queue: it is done."""
        return self._queue.popleft()

    def before(self, reply: Reply | None) -> tuple[int, ...]:
        """The ids of the main context, without a reply that it holds already."""
        if reply is None or self._draft is not None or reply.closing or reply.reason == "nothing":
            return tuple(self.main.ids)
        return tuple(self.main.ids[: reply.start - self.main.evicted])

    def opening(self) -> tuple[int, ...]:
        """The marker that a turn begins with: none where the context ends in speech."""
        vocabulary = self._language.vocabulary
        after_speech = vocabulary.speech_token(self.main.ids[-1]) is not None
        return () if after_speech else (vocabulary.speech_marker,)

    def think(self, reply: Reply, ids: Sequence[int], since: int | None = None) -> None:
        """Begins a reply on a draft, after the `ids` that end the turn.

        With `since`, they are all that follows that position: what was fed and differs is taken back.
        """
        draft = self._draft = self.main.fork()
        self._queue.append(ForgetDrawn())
        if since is not None:
            ids = draft.rewind(since, ids)
        reply.start = draft.position + len(ids)
        row = [*ids, *reply.tokens.opening]
        draft.make_room(len(row) + self.reply_tokens)
        if row:
            draft.feed(row, reply.tokens.mask)
        else:
            draft.draw_again(reply.tokens.mask)

    def go_on(self, reply: Reply) -> None:
        """Feeds the id that a reply goes on with, and draws its next."""
        assert reply.next is not None
        context = self._draft or self.main
        token, drawn = reply.next
        reply.next = None
        if drawn:
            context.feed_drawn(token, reply.tokens.mask)
        else:
            context.feed([token], reply.tokens.mask)

    def adopt(self) -> None:
        """The draft, if there is one, becomes the main context: somebody has heard of it."""
        if self._draft is not None:
            self._queue.append(Adopt())
            self.main, self._draft = self._draft, None
            self.main.target = "main"

    def drop(self) -> None:
        """Drops the draft, if there is one, and what waits for it."""
        if self._draft is not None:
            forked = not any(isinstance(work, Fork) for work in self._queue)
            kept = [work for work in self._queue if not _is_drafts(work)]
            self._queue.clear()
            self._queue += [*kept, Drop()] if forked else kept
            self._draft = None

    def stop_drawing(self) -> None:
        """Nobody waits any more for what queued work would draw."""
        works = [replace(work, mask=None) if isinstance(work, Feed) else work for work in self._queue]
        self._queue.clear()
        self._queue += works

    def close_reply(self, reply: Reply, keep: int, whole: bool) -> None:
        """Leaves in the context what was heard of a reply: `keep` of its speech tokens.

        The text of an answer stays where the `whole` of it was heard. Else nothing says which of its words have
        sounded, and the model must not believe that it said them all: the context then holds the words that the person
        said and the speech that sounded, without the answer's text.
        """
        tokens = reply.tokens
        if whole:
            ids = tokens.ids
            wanted = ids[: len(ids) - len(tokens.speech) + keep]
        else:
            wanted = [*tokens.ids[: tokens.transcript], *tokens.speech_opening, *tokens.speech[:keep]]
        self.main.rewrite(reply.start, [*wanted, EOS] if self._language.chain else wanted)


def _is_drafts(work: CacheWork) -> bool:
    if isinstance(work, Feed | Truncate | Evict):
        return work.target == "draft"
    return isinstance(work, Fork | ForgetDrawn)
