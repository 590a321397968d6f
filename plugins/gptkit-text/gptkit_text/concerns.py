"""What may spoil a training, as far as the tokens of its text show it."""

from collections.abc import Iterator

from gptkit_text.survey import Group, Survey

EXAMPLES = 5
SELDOM = 10
"""A token that comes no more often teaches the model hardly anything."""
PER_TOKEN = 64
"""How many tokens of text there should be for each of the vocabulary."""
SMALLEST = 512
"""The smallest vocabulary that is suggested."""
MOST = 0.5
"""The largest share of a text that one token usually has."""
UNUSED = 0.01
"""The share of the vocabulary that may go unused: BPE has tokens that are parts of others."""


def concerns(found: Survey) -> Iterator[str]:
    """What to know before training, a line each."""
    if found.too_short:
        yield f"a training will refuse this text: {found.too_short}"
    yield from _about_split(found)
    yield from _about_vocabulary(found)
    if found.codec.end is None:
        yield 'documents = "join" has no end token: a sample ends only at the length asked for'


def _about_split(found: Survey) -> Iterator[str]:
    for source in found.sources:
        if source.val.documents is None:
            one = source.train.documents == 1
            fault = "one document only" if one else "too few documents to take whole ones"
            last = f"its last {source.val.tokens:,} tokens are for validation"
            yield f"{source.name}: {fault}: {last}"
    if found.shared:
        yield (
            f"{found.shared:.2%} of the documents for validation are in training, too, or nearly "
            "so: val_loss will be too low"
        )


def _about_vocabulary(found: Survey) -> Iterator[str]:
    for token in found.commonest.first[:1]:
        if token.count > MOST * found.train.tokens:
            share = token.count / found.train.tokens
            yield (
                f'"{found.shown(token.id)}" is {share:.0%} of all tokens in training: '
                "does the tokenizer know this text?"
            )
    if found.untaught.size:
        yield f"in validation, and never in training: {_named(found, found.untaught)}"
    longer = found.longer.size
    if found.never.size > UNUSED * longer:
        yield f"never in training, of {longer:,} longer tokens: {_named(found, found.never)}"
    size = _fitting(found)
    if longer and found.median < SELDOM and size < found.codec.vocab_size:
        come = f"come at most {found.median:g} times" if found.median else "never come"
        yield (
            f"the vocabulary is large for this text: half of its longer tokens {come} in training; "
            f"tokenizer = {{ train = {size} }} suits it"
        )


def _fitting(found: Survey) -> int:
    """The size of a vocabulary that fits the text, a power of 2."""
    size = 1 << (max(found.train.tokens // PER_TOKEN, 1).bit_length() - 1)
    return max(size, SMALLEST)


def _named(found: Survey, group: Group) -> str:
    """How many tokens a group has, and the first of them."""
    names = [f'"{found.shown(token.id)}"' for token in group.first[:EXAMPLES]]
    more = ", ..." if group.size > len(names) else ""
    return f"{group.size:,} token{'s' * (group.size != 1)}: {', '.join(names)}{more}"
