"""What can go wrong, by who has to act: the user (exit status 2) or nobody yet (exit status 1)."""


class EdgeqError(Exception):
    """The user must change something; the message says what was wrong, where, and what to do."""

    exit_status = 2


class ModelError(EdgeqError):
    """The model cannot be read, or holds something that edgeq refuses."""


class UnsupportedOperatorError(ModelError):
    """A node's operator, or one of its attributes, has no definition in edgeq."""


class DataError(EdgeqError):
    """Samples do not fit the model, or cannot be read."""


class RecipeError(EdgeqError):
    """A recipe, or one of its options, is not valid."""


class UnknownNameError(EdgeqError):
    """No pass, target, recipe or metric has this name."""


class PassError(EdgeqError):
    """A pass failed on a node that it should have been able to rewrite."""


class BundleError(EdgeqError):
    """A bundle is incomplete, altered, or not meant for this runtime."""


class VerificationError(EdgeqError):
    """Bits differ, a proof is missing, or a limit is not met."""

    exit_status = 1


def suggest(name: str, known: list[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest of `known`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class UnpredictableError(EdgeqError):
    """What a kernel computes of these codes is not written down."""
