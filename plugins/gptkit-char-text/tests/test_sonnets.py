from pathlib import Path

import gptkit_char_text

TEXT = Path(gptkit_char_text.__file__).with_name("sonnets.txt").read_bytes().decode("ascii")
SONNETS = [sonnet.split("\n") for sonnet in TEXT.removesuffix("\n").split("\n\n")]


def test_all_sonnets_are_there_with_all_their_lines() -> None:
    assert len(SONNETS) == 154
    lines = {number: len(sonnet) for number, sonnet in enumerate(SONNETS, start=1)}
    assert {number: n for number, n in lines.items() if n != 14} == {99: 15, 126: 12}


def test_first_lines() -> None:
    assert SONNETS[0][0] == "From fairest creatures we desire increase,"
    assert SONNETS[17][0] == "Shall I compare thee to a summer's day?"
    assert SONNETS[115][0] == "Let me not to the marriage of true minds"
    assert SONNETS[129][0] == "My mistress' eyes are nothing like the sun;"
    assert SONNETS[153][0] == "The little Love-god lying once asleep"


def test_plain_characters_only() -> None:
    assert TEXT.endswith("love.\n")
    assert len(set(TEXT)) == 59
    assert not set(TEXT) & set('0123456789"()[]_*#\t\r')
    assert all(line and line == line.strip() for sonnet in SONNETS for line in sonnet)
