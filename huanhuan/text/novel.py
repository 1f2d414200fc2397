"""Novels: who says each quotation, told from the narration around it; silence where it is not evident."""

from __future__ import annotations

import re
from collections import Counter

from huanhuan.text.headings import read_heading
from huanhuan.text.labels import Speakers, name_key
from huanhuan.text.model import Direction, Scene, Script, Skipped, Speech
from huanhuan.text.quotes import Quote, is_speech, paragraphs, quotations, quote_pair

# Between two quotations of one conversation stand at most this many characters of narration, or paragraphs.
_APART = 300
_PARAGRAPHS = 3
_SAY = (
    "说道|說道|说|說|道|问|問|答|曰|云|喊|叫|骂|罵|嚷|喝|回|笑|哭|叹|嘆|劝|勸|念|吩咐|嘱咐|催|央告|求"
    "|哼|嗔|啐|回禀|禀|冷笑|微笑|赔笑|陪笑|开口|接口"
)
_SAYS = re.compile(f"(?:{_SAY})(?:道|说|說|着|著|了|他|她|我|你|曰|云)?[：:∶，,]?$")
# How a subject is opened; none of it is part of a name.
_BEFORE = re.compile(
    "^(?:彼时|那时|登时|当时|一日|这日|那日|次日|遂|只见|只听|忽见|忽听|却见|却说|且说|话说|原来|谁知|于是|因此|一时|一面|当下|这里|那里|那边|这边|此时|这时|如今|说着|说毕|说罢|语未了|未及|只是|又见|便见"
    "|听见|只有|忽然|那|这|因|便|忙|又|而|但|却|且|听得|偏|正值|唯|惟){1,3}"
)
# What stands between a name and its verb of speech.
_MANNER = (
    "(?:[冷微苦陪赔忙便又也因就才乃方只正都却早已听了着著一连且向笑哭叹气喜怒惊急悄低高轻柔淡缓慢]|点头|摇头|摆手|起身|回头|连忙|随即|接着|接口|开口|不禁|不由得"
    "|[低轻柔沉朗厉]声|含[笑泪羞]|[淡缓慢幽冷]{2}[的地]?|微微一笑|[^，。！？；：“”]{0,2}[的地]){0,6}"
)
_MANNER_END = re.compile(_MANNER + "$")
# Bounded repetition throughout: an unbounded one could match a long clause in exponentially many ways.
_OBJECT = re.compile("[向对對问問与與和同叫给給拉见見指望看把将被替跟命令使着]$")
_PRONOUNS = frozenset("他她它你您咱")
_CLAUSE = re.compile("[，。！？；：:∶,!?;…—\\s]+")
_SENTENCE = re.compile("[。！？!?；]")
_DISCOVER = re.compile(
    f"(?:^|[，。！？；”])(?:{_BEFORE.pattern[1:]})?([\\u4e00-\\u9fff]{{2,4}}?){_MANNER}(?:{_SAY})道?[：:∶，]?“"
)
_NO_NAME = re.compile(
    "(?:[说說道问問笑哭叹听見见来去了着又便忙因不是在有也就都把被向对對与和这那的得之乃曰只方起回头话想看口身气声心]"
    "|^[他她我你它您众大小老一二两三四五人]?人$|^[他她我你它您一半半]|悄|勉强|诧异|抱怨|故意|喜欢|欢喜|吩咐|拍手|跪|点头|含|大家|这些|些人|着急|生气|纳闷|[先再才还等]$|[皱拭央告微轻]|人冷)"
)


def parse_novel(script: Script, lines: list[str], speakers: Speakers) -> Script:
    """Fill ``script`` with the quotations whose speaker is evident, in scenes of nearby quotations.

    Those whose speaker is not stay in their scene as an interruption, so that nothing said before them is taken for
    the prompt of what comes after; they are listed as skipped.
    """
    pair = quote_pair(lines)
    if pair is None:
        return script
    lines, ends = paragraphs(lines)
    cast = _cast(lines, pair, speakers)
    start = 0
    for at in range(len(lines) + 1):
        heading = read_heading(lines[at].strip(" 　\t")) if at < len(lines) else None
        if at == len(lines) or (heading and pair[0] not in lines[at]):
            _chapter(script, lines[start:at], start + 1, pair, cast)
            start = at + 1
    for scene in script.scenes:
        for item in scene.items:
            item.last = ends.get(item.last, item.last)
        for speech in scene.speeches:
            for name in speech.speakers:
                script.labels[name] += 1
                script.first_lines.setdefault(name, speech.first)
    counts: Counter[str] = Counter()
    for name, count in script.labels.items():
        counts[name_key(name)] += count
    speakers.add(counts)
    return script


def _cast(lines: list[str], pair: tuple[str, str], speakers: Speakers) -> _Cast:
    """The names that speak: those the user gave, and words that stand before a verb of speech again and again."""
    counts: Counter[str] = Counter()
    for line in lines:
        if pair[0] in line:
            text = line.strip(" 　\t").replace(pair[0], "“").replace(pair[1], "”") if pair[0] != "“" else line.strip()
            counts.update(match[1] for match in _DISCOVER.finditer(text))
    often = {name for name, count in counts.items() if count >= 3 and not _NO_NAME.search(name)}
    # 黛玉先 is 黛玉 and an adverb: a name that only lengthens a more frequent one is taken for that one.
    longer = {
        name
        for name in often
        if any(counts[name[:size]] > counts[name] and name[:size] in often for size in range(2, len(name)))
        and name[-1] not in "儿氏"
    }
    return _Cast((often - longer) | set(speakers.names))


class _Cast:
    """Finds names at the start of a clause, the longest first."""

    def __init__(self, names: set[str]) -> None:
        self.names = {name for name in names if name}
        # Where the character tells the story as 我, whoever is called 他 or 她 is somebody else.
        self.pronouns = frozenset("你您咱") if "我" in names else _PRONOUNS
        if "我" in names:
            self.names |= {"他", "她"}
        self.longest = max(map(len, self.names), default=0)
        self.by_first = {name[0] for name in self.names}

    def at_start(self, clause: str) -> str | None:
        """The name that ``clause`` begins with, after what merely opens a sentence."""
        for text in (clause, _BEFORE.sub("", clause)):
            if text[:1] in self.by_first:
                for size in range(min(self.longest, len(text)), 0, -1):
                    if text[:size] in self.names:
                        return text[:size]
        return None

    def inside(self, clause: str) -> bool:
        """Whether any name stands in ``clause``."""
        return any(
            clause[at : at + size] in self.names
            for at, character in enumerate(clause)
            if character in self.by_first
            for size in range(1, self.longest + 1)
        )

    def before_verb(self, clause: str) -> str | None:
        """The name right before the verb of speech that ends ``clause``, if it is not the one spoken to."""
        verb = _SAYS.search(clause)
        if not verb:
            return None
        head = _MANNER_END.sub("", clause[: verb.start()])
        for size in range(min(self.longest, len(head)), 0, -1):
            if head[-size:] in self.names:
                return None if _OBJECT.search(head[:-size]) else head[-size:]
        return None


def _chapter(script: Script, lines: list[str], first: int, pair: tuple[str, str], cast: _Cast) -> None:
    """Take the quotations of one chapter."""
    scene: Scene | None = None
    previous: Quote | None = None
    speaker: str | None = None
    for quote in quotations(lines, first, pair):
        shown = quote.text
        if not is_speech(quote):
            script.skipped.append(Skipped(script.file, quote.first, quote.last, "not_speech", shown))
            continue
        if not quote.balanced:
            script.skipped.append(Skipped(script.file, quote.first, quote.last, "unbalanced", shown))
        if scene is None or quote.apart > _APART or quote.paragraphs > _PARAGRAPHS:
            scene = Scene("", quote.first, quote.last)
            script.scenes.append(scene)
            speaker = None
        goes_on = quote.goes_on or (
            previous is not None and previous.last == quote.first and _interrupted(previous, quote)
        )
        speaker = speaker if goes_on and speaker else attribute(quote, cast)
        previous = quote
        if speaker is None or not quote.balanced:
            if speaker is None:
                script.skipped.append(Skipped(script.file, quote.first, quote.last, "unattributed", shown))
            scene.items.append(Direction("", quote.first, quote.last, breaks=True))
        else:
            scene.items.append(Speech((speaker,), quote.text, quote.text, quote.first, quote.last))
        scene.last = quote.last


def _interrupted(previous: Quote, quote: Quote) -> bool:
    """Whether ``quote`` is the rest of what ``previous`` began: “好，”她道，“走吧。”"""
    return previous.text.endswith(("，", ",")) and quote.lead.endswith(("，", ",", "：", ":")) and len(quote.lead) < 24


def attribute(quote: Quote, cast: _Cast) -> str | None:
    """Who says a quotation, or None where the narration does not tell.

    First the words that introduce it: the name right before the verb, else the nearest clause of the sentence, or of
    the one before, that begins with a name. A clause that begins with a pronoun ends the search: whom it means is not
    evident. Without such words, those that follow: “……”甄嬛道。
    """
    lead = quote.lead.strip()
    if lead and lead[-1] in "：:∶，,":
        return _from_lead(lead[:-1], cast)
    # No mark at all before the quotation: it must be introduced by a verb.
    if lead and lead[-1] not in "。！？!?…；”」" and _SAYS.search(lead):
        return _from_lead(lead, cast)
    return _from_trail(quote.trail.strip(), cast)


def _from_lead(lead: str, cast: _Cast) -> str | None:
    sentences = [each for each in _SENTENCE.split(lead) if each.strip()]
    hidden = False
    for back, sentence in enumerate(reversed(sentences[-2:])):
        clauses = [each for each in _CLAUSE.split(sentence) if each]
        # 甲被乙拦住，笑道: grammar says 甲, sense says 乙.
        if "被" in sentence and not (clauses and cast.before_verb(clauses[-1])):
            return None
        for place, clause in enumerate(reversed(clauses)):
            if place == 0 and back == 0:
                name = cast.before_verb(clause)
                if name:
                    return name
            name = cast.at_start(clause)
            if name:
                rest = _BEFORE.sub("", clause)[len(name) :] if not clause.startswith(name) else clause[len(name) :]
                # 甄嬛的宫女道: somebody else of whom only the mistress is named.
                return None if rest.startswith(("的", "之")) or (place == 0 and _names_other(rest)) else name
            # Somebody is named here, but not as the subject: whoever the sentence before is about may be meant or not.
            hidden = hidden or cast.inside(clause)
            if _BEFORE.sub("", clause)[:1] in cast.pronouns or clause[:1] in cast.pronouns:
                return None
        if hidden:
            return None
    return None


def _names_other(rest: str) -> bool:
    """Whether what follows a name makes another person of it: 甄嬛身边的人, 黛玉之母."""
    return bool(re.match("[身房屋家]?[边里中下]?[的之]", rest))


def _from_trail(trail: str, cast: _Cast) -> str | None:
    """The speaker named right behind the quotation, unless what names him introduces the next one."""
    if not trail or trail[-1] in "：:∶":
        return None
    clause = _CLAUSE.split(trail, maxsplit=1)[0]
    name = cast.at_start(clause)
    if name is None or not re.match(f"{_MANNER}(?:{_SAY})", clause[clause.find(name) + len(name) :]):
        return None
    return name
