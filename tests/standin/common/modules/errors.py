"""What the host prints: kept here, so that a test can see what it would have swallowed."""

import sys

reported: list[tuple[str, BaseException | None]] = []


def report(message, *, exc_info=False):
    reported.append((message, sys.exc_info()[1] if exc_info else None))
