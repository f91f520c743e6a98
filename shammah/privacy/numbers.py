"""Numbers of cards, accounts and people, by their check digits. Pure.

A check digit alone lets one number in ten through by chance. So a card needs the first digits and
the groups of one, an account the structure of its country, and a person's number its groups, a
date inside, or a word before it that says what it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator

from shammah.privacy.text import compiled, occurrences, unwrap

SEPARATOR = r"[\s.\-_/|:*~]"
AFTER_DATE = r"(?:(?<!\d )|(?<=-\d\d )|(?<=:\d\d )|(?<=[./]\d{4} ))"
LEFT, RIGHT = rf"(?<![A-Za-z0-9.\-]){AFTER_DATE}", r"(?![A-Za-z0-9\-]|\.\d| \d)"
"""Around a number of which nothing is left out."""

# --- payment cards ------------------------------------------------------------------------

_CARD = (  # Visa, Mastercard, Mir, American Express, Diners Club, JCB, Maestro and the rest
    r"4\d{15}(?:\d{3})?|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[0-2])\d{13}|220[0-4]\d{12,15}"
    r"|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}(?:\d{2})?|35\d{14}|(?:5[0678]|6\d)\d{14,17}"
)
_BETWEEN = rf"{SEPARATOR}{{1,3}}"
_FIRST, _LAST = r"(?<!\d)(?<!\d\s)(?<!\d\s\s)", r"(?!\s{0,3}\d)"
_CARD_FORMS = (
    (r"\d{14,16}(?!\d)", r"(?<!\d)(?<!\d\.)"),
    (rf"\d{{2,14}}\n\d{{2,14}}{_LAST}", _FIRST),
    (rf"\d{{4}}(?:{_BETWEEN}\d{{4}}){{3}}(?!\d)", r"(?<!\d)"),
    (rf"\d{{4}}(?:{_BETWEEN}\d{{4}}){{3}}{_BETWEEN}\d{{3}}(?!\d)", r"(?<!\d)"),
    (rf"\d{{4}}{_BETWEEN}\d{{6}}{_BETWEEN}\d{{4,5}}(?!\d)", r"(?<!\d)"),
    (rf"\d(?:[ .\-]\d){{13,15}}{_LAST}", _FIRST),
    (rf"\d\d(?:[ .\-]\d\d){{7}}{_LAST}", _FIRST),
)
"""How a card is written, and what must be before it: whole (but no fraction), over two lines, in
groups, or digit for digit. Longer ones in one piece are mostly identifiers."""
_CARD_WORDS = (
    r"card(?: number| no\.?)?|visa|mastercard|amex|maestro|(?:kredit)?karten?(?:nummer|nr\.?)?"
    r"|carte(?: bancaire)?|tarjeta|carta(?: di credito)?|cart[ãa]o|карт[аы]|卡号?|カード番号"
)


def holds_card(text: str) -> bool:
    """A number that begins, is as long and is grouped as those of cards, with Luhn's check; or
    any with that check after a word that says so."""
    if any(map(_luhn, labelled(text, _CARD_WORDS, r"\d(?:[ .\-]?\d){12,18}"))):
        return True
    text = unwrap(text)
    return any(
        _is_card(found[0]) and not _in_table(text, found.start(), found.end())
        for form, left in _CARD_FORMS
        for found in occurrences(form, text, left)
    )


def _is_card(number: str) -> bool:
    digits = compiled(r"\D").sub("", number)
    return compiled(_CARD).fullmatch(digits) is not None and _luhn(digits)


def _in_table(text: str, start: int, end: int) -> bool:
    """Whether it stands in a row of more numbers than come with a card, which are no cards."""
    before = compiled(r"[\d \t.\-_/]*$").search(text[max(0, start - 200) : start])
    after = compiled(r"[\d \t.\-_/]*").match(text, end, end + 200)
    row = (before[0] if before else "") + text[start:end] + (after[0] if after else "")
    fours = compiled(r"(?<!\d)\d{4}(?!\d)").findall(row)
    cards = any(  # a year may stand before and behind them
        all(_is_card("".join(fours[at : at + 4])) for at in range(first, len(fours) - 3, 4))
        for first in (0, 1)
        if (len(fours) - first) % 4 < 2
    )
    return len(fours) > 6 and not cards


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right doubled, the sum of all digits is 0
    modulo 10."""
    digits = compiled(r"\D").sub("", digits)
    total = sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return total % 10 == 0


# --- bank accounts ------------------------------------------------------------------------

_IBANS = """
AD8n12c AE19n AL8n16c AT16n AZ4a20c BA16n BE12n BG4a6n8c BH4a14c BI23n BR23n1a1c BY4c4n16c CH5n12c
CR18n CY8n16c CZ20n DE18n DJ23n DK14n DO4c20n EE16n EG25n ES20n FI14n FK2a12n FO14n FR10n11c2n
GB4a14n GE2a16n GI4a15c GL14n GR7n16c GT4c20c HN4a20n HR17n HU24n IE4a14n IL19n IQ4a15n IS22n
IT1a10n12c JO4a4n18c KW4a22c KZ3n13c LB4n20c LC4a24c LI5n12c LT16n LU3n13c LV4a13c LY21n
MC10n11c2n MD2c18c ME18n MK3n10c2n MN16n MR23n MT4a5n18c MU4a19n3a NI4a20n NL4a10n NO11n OM3n16c
PK4a16c PL24n PS4a21c PT21n QA4a21c RO4a16c RS18n RU14n15c SA2n18c SC4a20n3a SD14n SE20n SI15n
SK20n SM1a10n12c SO19n ST21n SV4a20n TL19n TN20n TR6n16c UA6n19c VA18n VG4a16n XK16n YE4a4n18c
"""
"""Country and structure of its accounts: so many digits, letters, or either (ISO 13616)."""
_CLASSES = {"n": "[0-9]", "a": "[A-Z]", "c": "[A-Z0-9]"}


def holds_iban(text: str) -> bool:
    """ISO 13616: the first four characters at the end, letters as numbers, 1 modulo 97."""
    text, between = unwrap(text).upper(), rf"{SEPARATOR}{{0,3}}"
    search, at = compiled(rf"[A-Z]{between}[A-Z]{between}\d{between}\d").search, 0
    while found := search(text, at):
        at = found.start() + 1
        structure = _iban_structures().get(found[0][0] + compiled(r"[A-Z]").findall(found[0])[1])
        rest = compiled(rf"(?:{between}[A-Z0-9]){{11,30}}").match(text, found.end())
        if structure and rest and _is_iban(found[0] + rest[0], structure):
            return True
    return False


def _is_iban(text: str, structure: str) -> bool:
    account = compiled(rf"{SEPARATOR}+").sub("", text)
    fits = compiled(structure).match(account, 2)
    if fits is None:
        return False
    account = account[: fits.end()]
    mostly_digits = 2 * sum(map(str.isdigit, account)) >= len(account)  # else it may be prose
    return (
        mostly_digits
        and int("".join(str(int(one, 36)) for one in account[4:] + account[:4])) % 97 == 1
    )


@functools.cache
def _iban_structures() -> dict[str, str]:
    """Country to the expression of what follows it."""

    def expand(part: re.Match[str]) -> str:
        return f"{_CLASSES[part[2]]}{{{part[1]}}}"

    rows = _IBANS.split()
    return {row[:2]: r"\d\d" + re.sub(r"(\d+)([nac])", expand, row[2:]) for row in rows}


_ACCOUNT_WORDS = (
    r"account (?:number|no\.?|nr\.?|#)|acct\.?|sort code|routing (?:number|no\.?)"
    r"|konto(?:nummer|-?nr\.?)?|bankleitzahl|blz|num[ée]ro de compte|n° de compte|compte n°|rib"
    r"|cuenta(?: bancaria)?|conto(?: corrente)?"
    r"|conta(?: corrente)?|iban|сч[её]та?|口座番号|[账帐]号|银行卡号?"
)

# --- people -------------------------------------------------------------------------------

Number = tuple[str, Callable[[str], bool]]


def _weighted(digits: str, weights: str, modulus: int) -> int:
    """The sum of digits, each times its weight, modulo ``modulus``; of a letter, its place."""
    return sum(int(d, 36) * int(w, 36) for d, w in zip(digits, weights, strict=False)) % modulus


def _china(number: str) -> bool:
    """GB 11643-1999: ISO 7064 MOD 11-2."""
    return "10X98765432"[_weighted(number, "79A584216379A5842", 11)] == number[17]


def _brazil(number: str) -> bool:
    """CPF: two digits, each modulo 11."""
    first = _weighted(number, "A98765432", 11)
    second = _weighted(number[:10], "BA98765432", 11)
    checks = "".join(str(11 - rest if rest > 1 else 0) for rest in (first, second))
    return checks == number[9:] and len({*number}) > 1


def _russia(number: str) -> bool:
    """SNILS: the sum modulo 101, modulo 100."""
    return _weighted(number, "987654321", 101) % 100 == int(number[9:]) and number[:9] > "001001998"


def _mexico(number: str) -> bool:
    """CURP: letters and digits by their place in an alphabet with an N that has a tilde."""
    values = ["0123456789ABCDEFGHIJKLMN\u00d1OPQRSTUVWXYZ".index(one) for one in number[:17]]
    total = sum(value * (18 - place) for place, value in enumerate(values))
    return str(-total % 10) == number[17]


def _japan(number: str) -> bool:
    """Individual Number: weights 2 to 7, modulo 11."""
    rest = _weighted(number, "65432765432", 11)
    return str(11 - rest if rest > 1 else 0) == number[11]


def _germany(number: str) -> bool:
    """Tax number: ISO 7064 MOD 11,10; one of the first ten digits stands there twice or thrice."""
    product = 10
    for digit in number[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    often = sorted(map(number[:10].count, {*number[:10]}))[-2:]
    return (11 - product) % 10 == int(number[10]) and often in ([1, 2], [1, 3])


def _france(number: str) -> bool:
    """NIR: 97 less the rest modulo 97; Corsica's 2A and 2B are 19 and 18."""
    digits = number.replace("2A", "19").replace("2B", "18")
    return 97 - int(digits[:13]) % 97 == int(digits[13:])


def _britain(number: str) -> bool:
    """NHS number: weights 10 to 2, modulo 11."""
    return (11 - _weighted(number, "A98765432", 11)) % 11 == int(number[9])


def _spain(number: str) -> bool:
    """DNI and NIE: the letter of the rest modulo 23."""
    digits = number[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == number[-1]


def _italy(number: str) -> bool:
    """Codice fiscale: odd places by a table, even ones by value, modulo 26."""
    odd = "10579dfhjl24ikb368cegampon"  # of 0 or A, 1 or B and so on
    values = [int(one, 36) - (0 if one.isdigit() else 10) for one in number]
    total = sum(int(odd[value], 36) for value in values[0:15:2]) + sum(values[1:15:2])
    return total % 26 == values[15]


def _india(number: str) -> bool:
    """Aadhaar: Verhoeff's check, by the group of the symmetries of a pentagon."""
    check = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit)
        for _ in range(place % 8):
            value = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[value]
        turned = (check + value) % 5 if check < 5 else (check - value) % 5
        check = turned + 5 * ((check < 5) != (value < 5))
    return check == 0


def _korea(number: str) -> bool:
    """Resident number: weights 2 to 9 and 2 to 5, modulo 11."""
    return (11 - _weighted(number, "234567892345", 11)) % 10 == int(number[12])


def _any(_number: str) -> bool:
    return True


_DAY = r"(?:0[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0[1-9]|1[0-2])"
_PEOPLE: tuple[Number, ...] = (
    # China, Mexico, France, Spain (DNI, NIE), Italy: sure wherever they stand
    (rf"[1-8]\d{{5}} ?(?:19|20)\d\d{_MONTH}{_DAY} ?\d{{3}}[\dXx]", _china),
    (rf"(?i:[A-Z][AEIOUX][A-Z]{{2}}\d\d{_MONTH}{_DAY}[HMX][A-Z]{{5}}[A-Z\d]\d)", _mexico),
    (r"[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3}[ /-]{0,3}\d\d", _france),
    (r"(?:\d{8}-?[A-HJ-NP-TV-Z]|(?i:[XYZ]-?\d{7}-?[A-HJ-NP-TV-Z]))", _spain),
    (r"(?i:[A-Z]{3} ?[A-Z]{3} ?\d\d[A-EHLMPRST]\d\d ?[A-Z]\d{3}[A-Z])", _italy),
    # India, Japan, Brazil, Russia, Germany, Britain, Korea: in their groups
    (r"[2-9]\d{3}([ -])\d{4}\1\d{4}", _india),
    (r"\d{4}([ -])\d{4}\1\d{4}", _japan),
    (r"\d{3}\.\d{3}\.\d{3}-\d\d", _brazil),
    (r"\d{3}-\d{3}-\d{3}[- ]\d\d", _russia),
    (r"[1-9]\d \d{3} \d{3} \d{3}", _germany),
    (r"[4679]\d\d \d{3} \d{4}", _britain),
    (rf"\d\d{_MONTH}{_DAY}-\d{{7}}", _korea),
    # the United States (SSN), India (PAN) and Britain (NINO) have no check digit: a rare shape
    (r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", _any),
    (r"(?!000|666|9)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}", _any),
    (r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?(?:\d\d ?){3}[A-D]", _any),
)
_PEOPLE_WORDS = (
    r"social security(?: number| no\.?)?|ssn|aadhaa?r|nhs|national insurance|my ?number|cpf"
    r"|curp|dni|nif|passport|reisepass|passeport|pasaporte|passaporte|passaporto"
    r"|personalausweis|ausweis|steuer-?(?:id|identifikationsnummer|nummer|nr\.?)|idnr\.?"
    r"|sozialversicherungsnummer|s[ée]curit[ée] sociale|codice fiscale|снилс|инн|snils|паспорт"
    r"|bsn|pesel|person(?:en)?nummer|f[øo]dselsnummer|cpr|ahv|egn|cnp|hetu|henkil[öo]tunnus|kimlik"
    r"|c[ée]dula|身份证|护照|マイナンバー|個人番号|driv(?:er'?s?|ing) licen[cs]e|tax id|id card"
)
_PEOPLE_NUMBER = (  # digits, or as passports have them letters among digits
    r"[a-z]{0,5}(?:[ .\-/]?\d){5,17}[a-z\d]{0,3}|(?=(?:[a-z]{0,8}\d){3})[a-z\d]{8,10}"
)


def holds_identity(text: str) -> bool:
    """A national number of a person, with its check digits or with a word that names it."""
    if any(labelled(text, _PEOPLE_WORDS, _PEOPLE_NUMBER)):
        return True
    return any(
        check(compiled(r"[ .\-/]").sub("", found[0]).upper())
        for pattern, check in _PEOPLE
        for found in occurrences(rf"(?:{pattern}){RIGHT}", text, LEFT)
    )


def labelled(text: str, words: str, what: str) -> Iterator[str]:
    """Each ``what``, in small letters, that comes after one of ``words``."""
    joint = r"number|no|nr|num|code|is|are|was|my|the|ist|lautet|mein|unter|est|es|son|mi|[èé]|di|n"
    pattern = (
        rf"(?:{words})[^\w\n]{{0,5}}(?:(?:{joint}|号码?|番号|是|为|は|это)[^\w\n]{{0,4}}){{0,3}}"
        rf"(?<![a-z0-9])({what})(?![a-z0-9])"
    )
    for found in occurrences(pattern, text.lower(), r"(?<![a-z0-9])"):
        yield found[1]


def holds_account(text: str) -> bool:
    """An IBAN, or a number after a word that says that it is an account's."""
    return holds_iban(text) or any(labelled(text, _ACCOUNT_WORDS, r"\d(?:[ .\-/]?\d){5,17}"))
