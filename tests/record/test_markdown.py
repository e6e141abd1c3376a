import sys
import unicodedata

from trd_ray.record.markdown import visible


def test_every_character_that_hides_or_moves_is_replaced_and_no_other():
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    for c in map(chr, range(sys.maxunicode + 1)):
        if c in "\n\t":
            continue
        assert visible(c) == ("\ufffd" if unicodedata.category(c) in hidden else c)
    assert visible("a\r\nb\tc\x1b[31m\n") == "a\nb    c\ufffd[31m\n"
