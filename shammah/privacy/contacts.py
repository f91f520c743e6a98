"""Mail addresses, telephone numbers and IP addresses, as people write them. Pure."""

from __future__ import annotations

from shammah.privacy.numbers import AFTER_DATE, labelled
from shammah.privacy.text import compiled, holds, occurrences

# --- mail ---------------------------------------------------------------------------------

_COMMON = (
    r"(?i:com|org|net|edu|gov|info|io|de|at|ch|fr|es|it|nl|be|pl|pt|br|co\.uk|uk|eu|se|dk|fi|no|cz"
    r"|ru|jp|cn|in|us|ca|au|me|dev|ai)"
)
"""Domains that count after a lone `` @ `` or `` at ``: `` @ `` multiplies matrices as well
(``x @ self.weight``), and "look at this dot product" is English."""
_AT = (
    rf"@\n?| @ (?=(?:[\w-]{{2,63}}\.){{1,4}}{_COMMON}(?![\w(\[]|\.\w))"
    rf"| (?:at|AT) (?=(?:[\w-]{{1,63}} (?:dot|DOT) ){{1,4}}{_COMMON}(?![\w-]))"
    r"|[(\[{<] ?(?:at|AT|@) ?[)\]}>] ?"
)
_DOT = r"(?:\n?\\?\.| (?:dot|DOT) | ?[(\[{<] ?(?:dot|DOT|\.) ?[)\]}>] ?)"
_NAME = r"""(?:[^\x00-\x20"(),:;<>@\[\\\]\x7f\s]{1,64}|"[^"\n]{1,64}")$"""
_LABEL = r"[^\x00-,./:-@\[-`{-\x7f\s]{1,63}"
_TOP = (
    r"(?:[xX][nN]--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24}(?![A-Za-z0-9-])"
    r"|(?![A-Za-z])[^\W\d_][^\x00-\x7f\s]{1,23})"
)
_NOBODY = (  # domains of RFC 2606, and what systemd calls a unit
    r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost|service|socket|timer"
    r"|target|slice|scope|mount|automount|swap|device|path)$"
)
_NO_NAMES = frozenset("git this super return break continue noreply no-reply donotreply".split())
"""What stands before an @ in addresses of repositories, in Kotlin, and where nobody reads: agents
are told to sign with one."""


def holds_mail(text: str) -> bool:
    """An address that may be somebody's, in any script, with a quoted name, or spelled out."""
    domains = compiled(rf"(?:{_LABEL}{_DOT}){{1,8}}{_TOP}")
    for at in compiled(_AT).finditer(text):
        domain = domains.match(text, at.end())
        if domain and not holds(_NOBODY, domain[0].lower()):
            before = text[max(0, at.start() - 67) : at.start()]
            name = compiled(_NAME).search(before.rstrip("\\" if at[0][0] == "@" else " "))
            if name and name[0].lower() not in _NO_NAMES and holds(r"[^\W_]", name[0]):
                return True
    return False


# --- telephone ----------------------------------------------------------------------------

_LEFT = rf"(?<![A-Za-z0-9+#$€£\-])(?<!\d[.,:/=]){AFTER_DATE}"
_RIGHT = r"(?![A-Za-z0-9]|[ .,:/\-]\d)"
_COUNTRY = (  # E.164: country codes, and how many digits may follow
    r"1[2-9]\d\d[2-9]\d{6}|7\d{10}|2(?:0|7|[1-69]\d)\d{6,10}|3(?:[0-469]|[578]\d)\d{7,11}"
    r"|4[013-9]\d{7,11}|42\d{8,10}|5\d{8,12}|6[0-6]\d{8,10}|6[789]\d{6,9}|8[1246]\d{8,11}"
    r"|8[058]\d{8,11}|9[0-58]\d{7,10}|9[679]\d{8,11}"
)
_ABROAD = r"(?:\+|00 ?)(?=[1-9])(?:[ .\-/()]{0,3}\d){8,16}(?!\d)"
_HOME = (  # as it is dialled inside a country; the groups make it a telephone number
    # a trunk 0, in Europe, Asia, Africa and Australia
    r"\(?0[1-9](?:[ ./()\-]{0,3}\d){7,10}",
    r"0\d{1,3}-\d\d \d\d \d\d",
    # America, Russia, India, China, Latin America, Spain, Poland, Portugal, Italy, Greece
    r"(?:1[ .\-])?(?:\([2-9]\d\d\) ?\d{3}[ .\-]|[2-9]\d\d([ .\-])\d{3}\1)\d{4}",
    r"8[ \-]?(?:\(\d{3}\)|(?<=[ \-])\d{3})[ \-]?\d{3}[ \-]?\d\d[ \-]?\d\d",
    r"[6-9]\d{4} \d{5}",
    r"1[3-9]\d[ \-]\d{4}[ \-]\d{4}",
    r"\(\d{1,3}\) ?9? ?\d{3,4}[ \-]?\d{4}",
    r"[5-9]\d\d(?: \d\d){3}",
    r"[5-9]\d\d([ \-])\d{3}\1\d{3}",
    r"\d\d \d{3} \d\d \d\d",
    r"2\d \d{3} \d{4}",
    r"3\d\d[ /\-]\d{7}",
    r"[1-9]\d \d{4}[ \-]\d{4}",
)
_NO_PHONE = (  # a date, or a ZIP+4
    r"\d{5}-\d{4}$|\(?(?:\d\d?[./\-]\d\d?[./\-]\d{2,4}|\d{4}-\d\d-\d\d)\b(?![./\-]\d)"
)
_MOBILE = r"0(?:[67]\d{8}|7\d{9}|1[5-7]\d{8,9}|[789]0\d{8})"
_GROUPS = r"(?:0[6-9]\d{4}|\d{2,5})\)?(?:\D+\d{2,9}){1,5}"
_WORDS = (
    r"tel(?:ephone|efon|éfono|efono|efoon|éphone)?|phone(?: number)?|mobile|cell(?:phone)?|fax"
    r"|whats ?app|(?:call|ring|text|phone) (?:me|him|her|us)(?: (?:at|on))?|handy(?:nummer)?"
    r"|mobil(?:nummer)?|rufnummer|portable|num[ée]ro|m[óo]vil|celular|cellulare|telem[óo]vel"
    r"|(?:appelle|appelez)-moi au|ll[áa]ma(?:me|dme) al|chiamami al|ruf mich (?:an )?unter"
    r"|tlf|puh|тел(?:ефон)?|номер|звоните|电话|手机|電話|携帯|फ़ोन|هاتفي?"
)


def holds_phone(text: str) -> bool:
    """A number with its country, in the groups of one, or after a word that says what it is."""
    number = r"\+?\(?\d(?:[ .\-/()]{0,2}\d){5,14}"
    return (
        any(_is_abroad(found[0]) for found in occurrences(_ABROAD, text, r"(?<![A-Za-z0-9.)])"))
        or any(
            _is_home(found[0])
            for form in _HOME
            for found in occurrences(form + _RIGHT, text, _LEFT)
        )
        or any(not compiled(_NO_PHONE).match(found) for found in labelled(text, _WORDS, number))
        or holds(r"[\u4e00-\u9fff][^\d\n]{0,6}1[3-9]\d{9}(?!\d)", text)
    )


def _is_abroad(number: str) -> bool:
    digits = compiled(r"\D").sub("", number.replace("(0)", ""))
    if number[0] == "0":
        digits = digits[2:]
        if number.isdigit() and len(digits) < 12:  # rather padded with zeros
            return False
    return compiled(_COUNTRY).fullmatch(digits) is not None


def _is_home(number: str) -> bool:
    """Of a number in groups: whether it is no date, and if it begins with 0, whether that is an
    area or a mobile network."""
    if compiled(_NO_PHONE).match(number):
        return False
    if "0" not in number[:2]:
        return "555" not in number or not holds(r"555\D?01\d\d$", number)  # of films
    return holds(rf"^\(?(?:{_MOBILE}|{_GROUPS})$", number)


# --- the network --------------------------------------------------------------------------

_IP4 = r"(?:\d{1,3}(?:\.|\[\.\])){3}\d{1,3}(?![A-Za-z0-9\-]|\.\w)"
_IP6 = r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,34}(?:(?:\d{1,3}\.){3}\d{1,3})?(?![A-Za-z0-9:]|\.\d)"


def holds_ip(text: str) -> bool:
    """An address of a machine, but not of this one, of nobody, or of an example."""
    return any(
        _is_ip(found[0].replace("[.]", "."))
        for pattern, left in ((_IP4, r"(?<![A-Za-z0-9.\-])"), (_IP6, r"(?<![A-Za-z0-9:.])"))
        for found in occurrences(pattern, text, left)
        if "." in found[0] or found[0].count(":") > 1
    )


def _is_ip(text: str) -> bool:
    from ipaddress import ip_address, ip_network

    try:
        address = ip_address(text)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    examples = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
    return not (
        address.is_loopback
        or address.is_unspecified
        or address.is_multicast
        or (address.version == 4 and address.packed[0] in (0, 255))
        or any(address in ip_network(example) for example in examples)
    )
