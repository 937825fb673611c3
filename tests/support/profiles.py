"""How many examples Hypothesis tries. HYPOTHESIS_PROFILE chooses: ``quick`` (what people run),
``ci`` (the default with CI=true) or ``deep`` (for an hour's doubt about a change)."""

import os

from hypothesis import settings

# How many examples of a profile stand for one that a test asks for.
SHARES = {"quick": 0.25, "ci": 1.0, "deep": 10.0}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "quick")
DEFAULT_EXAMPLES = 100


def examples(number: int) -> int:
    """``number`` is what continuous integration tries; other profiles try their share of it."""
    return max(1, round(number * SHARES[PROFILE]))


def choose_profile() -> None:
    """Registers all profiles with Hypothesis and loads that of the environment.

    Raises:
        KeyError: there is no profile of that name.
    """
    for name, share in SHARES.items():
        number = max(1, round(DEFAULT_EXAMPLES * share))
        settings.register_profile(name, max_examples=number, deadline=None, print_blob=True)
    settings.load_profile(PROFILE)
