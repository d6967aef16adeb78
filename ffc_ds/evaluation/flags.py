"""How files say whether two images show the same person."""

from numbers import Real

WORDS = {
    True: "1 1.0 +1 true t yes y same genuine match matched positive",
    False: "0 0.0 -1 -1.0 false f no n different diff impostor imposter mismatch mismatched negative",
}
FLAGS = {word: same for same, words in WORDS.items() for word in words.split()}


def read_flag(stored: object) -> bool | None:
    """The flag that a text, a number or a boolean stands for; None if it stands for none."""
    text = stored.decode("latin-1") if isinstance(stored, bytes) else stored
    return FLAGS.get(str(text).strip().lower()) if isinstance(text, (str, Real)) else None
