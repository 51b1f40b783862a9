from plumbing.spelling import hint


def test_the_nearest_word_else_all_of_them_else_where_to_look() -> None:
    assert hint("mac", ("macs", "serial")) == "did you mean 'macs'?"
    assert hint("zzz", ("macs", "serial")) == "valid here: macs, serial"
    assert hint("zzz", ("macs", "serial"), "look elsewhere") == "look elsewhere"
