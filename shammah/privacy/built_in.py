"""The built-in rules: the setting of ``[privacy]`` that switches each, and what it finds. Pure."""

from __future__ import annotations

from collections.abc import Callable

from shammah.privacy import contacts, credentials, numbers
from shammah.privacy.text import holds

Check = Callable[[str], bool]


def _of_digits(check: Check) -> Check:
    """``check``, where there are some digits at all: most texts have none."""
    return lambda text: holds(r"\d(?:\D{0,3}\d){3}", text) and check(text)


RULES: dict[str, tuple[Check, str]] = {
    "api_keys": (credentials.holds_key, "a key or token"),
    "private_keys": (credentials.holds_private_key, "a private key"),
    "passwords": (credentials.holds_password, "a password"),
    "emails": (contacts.holds_mail, "an e-mail address"),
    "cards": (_of_digits(numbers.holds_card), "a payment card number"),
    "ibans": (_of_digits(numbers.holds_account), "a bank account number"),
    "identity_numbers": (_of_digits(numbers.holds_identity), "an identity number"),
    "phones": (_of_digits(contacts.holds_phone), "a telephone number"),
    "ip_addresses": (contacts.holds_ip, "an IP address"),
}
"""Each is given a text in its normal form (`shammah.privacy.text.normalise`)."""
