"""Scenes to exchanges, and exchanges to conversations that fit a budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from huanhuan.dataset.records import Conversation, Exchange, Source
from huanhuan.text.clean import join_lines
from huanhuan.text.labels import name_key
from huanhuan.text.model import Direction, Scene, Skipped


@dataclass(frozen=True)
class CutOptions:
    """How scenes become conversations; lengths are in characters.

    ``context``: turns of a prompt; over 1, or with ``names``, each is written as ``名：台词`` on a line of its own.
    ``context_chars``: cap of a prompt of several turns; the oldest go first.
    ``budget``: cap of a conversation, its system prompt included; one longer exchange is kept whole.
    ``budget_tokens``: the same in tokens, instead.
    ``openers``: what to do with a reply that nobody's turn precedes: ``drop``, or prompt it with the ``direction``.
    ``keep_directions``: leave stage directions in the text, as ``（…）``.
    """

    context: int = 1
    names: bool = False
    context_chars: int = 400
    budget: int = 1500
    budget_tokens: int | None = None
    openers: str = "drop"
    keep_directions: bool = False
    single_turn: bool = False


@dataclass(slots=True)
class Turn:
    """Consecutive lines of one speaker; ``before`` are the directions that stand right before it.

    ``unknown``: nobody knows who speaks, so it is neither a prompt nor a reply and parts what is around it.
    """

    speakers: tuple[str, ...]
    hers: bool
    text: str
    file: str
    first: int
    last: int
    before: str = ""
    unknown: bool = False


@dataclass(slots=True)
class Pair:
    """An exchange and the lines it was read from, the prompt's first to the reply's last."""

    input: str
    output: str
    first: int
    last: int


def turns_of(
    scene: Scene, file: str, keys: Collection[str], *, slips: Collection[str] = (), keep_directions: bool = False
) -> list[Turn]:
    """The turns of a scene. ``keys`` are the character's names through :func:`name_key`.

    A turn spoken by her together with others is hers, and lines of hers are one turn across a direction. Whose the
    lines of ``slips`` are (labels that are nearly her name) is not known.
    """
    turns: list[Turn] = []
    directions = ""
    for item in scene.items:
        if isinstance(item, Direction):
            if item.breaks:
                turns.append(Turn((), False, "", file, item.first, item.last, unknown=True))
                directions = ""
                continue
            directions = join_lines(directions, f"（{item.text}）")
            continue
        hers = any(name_key(name) in keys for name in item.speakers)
        text = item.staged if keep_directions else item.text
        last = turns[-1] if turns else None
        if last and (last.hers if hers else last.speakers == item.speakers):
            between = directions if keep_directions else ""
            last.text = join_lines(join_lines(last.text, between), text)
            last.last = max(last.last, item.last)
            last.first = min(last.first, item.first)
        else:
            unknown = not hers and any(name in slips for name in item.speakers)
            turns.append(Turn(item.speakers, hers, text, file, item.first, item.last, directions, unknown))
        directions = ""
    return turns


@dataclass
class Cut:
    """The exchanges of one scene; the turns after her last one; what is in none of them."""

    pairs: list[Pair]
    open: list[Turn]
    skipped: list[Skipped]


def pairs_of(turns: Sequence[Turn], options: CutOptions, before: Sequence[Turn] = ()) -> Cut:
    """The exchanges of one scene.

    The prompt is the turn of somebody else right before hers; with ``context`` also the turns before that, back to
    her last one. ``before`` are the open turns of the same scene in the file before; an exchange whose prompt is one
    of them has the lines of the reply.
    """
    pairs: list[Pair] = []
    skipped: list[Skipped] = []
    since: list[Turn] = list(before)
    parted = False
    for turn in turns:
        if turn.unknown:
            skipped.extend(unused(since))
            if turn.speakers:
                shown = f"{'、'.join(turn.speakers)}：{turn.text}"
                skipped.append(Skipped(turn.file, turn.first, turn.last, "near_alias", shown))
            since, parted = [], True
            continue
        if not turn.hers:
            since.append(turn)
            continue
        used: list[Turn] = []
        if since:
            prompt, used = _prompt(since, options)
            if options.keep_directions and turn.before:
                prompt = join_lines(prompt, turn.before)
            first = next((each.first for each in used if each.file == turn.file), turn.first)
            pairs.append(Pair(prompt, turn.text, first, turn.last))
        elif options.openers == "direction" and turn.before and not parted:
            pairs.append(Pair(turn.before, turn.text, turn.first, turn.last))
        else:
            skipped.append(
                Skipped(turn.file, turn.first, turn.last, "unknown_prompt" if parted else "no_prompt", turn.text)
            )
        skipped.extend(unused(since[: len(since) - len(used)]))
        since, parted = [], False
    return Cut(pairs, since, skipped)


def _prompt(since: list[Turn], options: CutOptions) -> tuple[str, list[Turn]]:
    """The prompt made of the newest turns of ``since`` and the turns it is made of."""
    if options.context <= 1 and not options.names:
        return since[-1].text, since[-1:]
    lines: list[str] = []
    size = 0
    for turn in reversed(since[-options.context :]):
        line = f"{'、'.join(turn.speakers)}：{turn.text}"
        if options.keep_directions and turn.before and lines:
            line = f"{turn.before}\n{line}"
        size += len(line)
        if lines and size > options.context_chars:
            break
        lines.append(line)
    return "\n".join(reversed(lines)), since[-len(lines) :]


def unused(turns: Sequence[Turn]) -> Iterator[Skipped]:
    """One entry for a run of turns of one file that no reply follows."""
    for file, run in groupby(turns, key=lambda turn: turn.file):
        group = list(run)
        shown = " / ".join(f"{'、'.join(turn.speakers)}：{turn.text}" for turn in group[:3])
        yield Skipped(file, min(turn.first for turn in group), max(turn.last for turn in group), "not_prompt", shown)


def conversations_of(
    pairs: Sequence[Pair], file: str, options: CutOptions, system: str | None, measure: Callable[[str], int] = len
) -> list[Conversation]:
    """The exchanges of a scene as records, cut between exchanges where the budget is reached, as ``measure`` counts.

    [乙→丙, 丁→戊] → one record of two exchanges, or two records with ``single_turn``.
    """
    found: list[Conversation] = []
    current: list[Pair] = []
    budget = options.budget_tokens or options.budget
    # The template's own tokens, six around the system prompt and twice as many around an exchange at most.
    frame = 12 if options.budget_tokens else 0
    fixed = measure(system) + frame // 2 if system else 0
    size = fixed
    for pair in pairs:
        length = measure(pair.input) + measure(pair.output) + frame
        if current and (options.single_turn or size + length > budget):
            found.append(_record(current, file, system))
            current, size = [], fixed
        current.append(pair)
        size += length
    if current:
        found.append(_record(current, file, system))
    return found


def _record(pairs: Sequence[Pair], file: str, system: str | None) -> Conversation:
    return Conversation(
        tuple(Exchange(pair.input, pair.output) for pair in pairs),
        system,
        Source(file, min(pair.first for pair in pairs), max(pair.last for pair in pairs)),
    )


def single_turns(conversation: Conversation) -> list[Conversation]:
    """Each exchange of a record as a record of its own, with the system prompt and the source of the whole.

    (乙→丙, 丁→戊) → (乙→丙), (丁→戊)
    """
    return [Conversation((exchange,), conversation.system, conversation.source) for exchange in conversation.exchanges]
