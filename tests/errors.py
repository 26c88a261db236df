"""What a test asserts of an error: its class, its code, and the file, row, key or value that it names.

The sentence itself stands in tests/golden_messages (tests/messages.py), so a better one breaks no test elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from samr1_verl import Samr1Error


@contextmanager
def refused(kind: type[Samr1Error], code: str, *names: object) -> Iterator[pytest.ExceptionInfo]:
    """Assert that the body raises this class with this code, and that the message names these."""
    with pytest.raises(kind) as found:
        yield found
    assert found.value.code == code, str(found.value)
    missing = [str(name) for name in names if str(name) not in str(found.value)]
    assert not missing, f"{found.value} does not name {missing}"
