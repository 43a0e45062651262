"""What alignment is, measured: of any Sightline model, and of any stock LLaVA.

subject     one look into a model: visual tokens, words, hidden states, attention, answers; and tokens put in its place
words       the nearest word of each visual token
lens        the same, drawn over the image
view        which part of an image a model sees, and where in it each token stands
geometry    where visual tokens lie beside words
sight       whether an answer uses the image
cause       whether a wrong word at a token is why an answer is wrong
probe       what can be read from the tokens
kept        what the language model still knows
captions    what captions name, right and wrong, as the model is and at each of its levels
information how well a picture can be drawn again from its visual tokens
telling     asking for a window of an image, and what is there
cognition   what it says that images are made of, where it was trained to (VLSA)
levels      the vectors of a model's levels, and how its gate weighs them, where it has some (AlignGPT)
"""

from enum import StrEnum


class Part(StrEnum):
    """What `diagnose` can measure."""

    words = "words"
    geometry = "geometry"
    sight = "sight"
    attention = "attention"
    cause = "cause"
    probe = "probe"
    kept = "kept"
    captions = "captions"
    levels = "levels"
    """Of models that have levels."""
    gate = "gate"
    """Of models whose levels have a gate."""
    cognition = "cognition"
    """Of models whose recipe has the method `cognition`."""
    information = "information"
    """Fits a decoder for a minute or more, so it is measured where it is asked for by name."""
