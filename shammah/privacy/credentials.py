"""Keys, tokens, private keys and passwords, as services and files write them. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from shammah.privacy.text import compiled, holds, occurrences, unwrap

_ALPHABETS = {
    "w": "A-Za-z0-9_-",
    "a": "A-Za-z0-9",
    "u": "A-Z0-9",
    "h": "a-f0-9",
    "b": "A-Za-z0-9+/=_-",
    "d": "A-Za-z0-9.-",
}
_KEYS = r"""
Anthropic, OpenAI, OpenRouter, DeepSeek  sk-(?=[\w-]{0,60}\d)  w20
AWS             AKIA  u16    ASIA  u16    ABIA  u16    ACCA  u16
Google          AIza  w35    ya29\.  w20    GOCSPX-  w20    1//0  w30
GitHub          gh[pousr]_  a20    github_pat_  w20
GitLab          gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat|ffct|rtr|wt)-  w16    GR1348941  w16
Slack           xox[abeoprs]-  w10    xapp-\d-  w10    hooks\.slack\.com/services/T  b18
Hugging Face    hf_  a30    api_org_  a30
packages        npm_  a30    pypi-  w50    rubygems_  h40    cio  a32    oy2  a43
Stripe          sk_(?:live|test)_  a16    rk_(?:live|test)_  a16    whsec_  b24
mail services   SG\.[\w-]{16,64}\.  w16    key-  h32    xkeysib-  h40
Twilio, Heroku  SK  h32    HRKU-  w30
DigitalOcean    do[opr]_v1_  h40
Docker          dckr_[po]at_  w20
Discord         discord(?:app)?\.com/api/webhooks/\d{10,20}/  w30
Shopify         shp(?:at|ca|pa|ss)_  h32
Square          sq0(?:atp|csp|idp)-  w20    EAAA[EL]  w50
Cloudflare      v1\.0-[a-f0-9]{24}-  h100    cf(?:ut|at)_  a36
Atlassian       ATATT3  b50
Linear, Notion  lin_api_  a30    ntn_  a40    secret_  a40
Figma, Postman  figd_  w30    PMAK-  h24
Databricks      dapi  h32
Supabase        sb[ps]_  h40    sb_secret_  w20
other models    gsk_  a40    xai-  a40    pplx-  a40    r8_  a30    lsv2_[ps][kt]_  w30
monitoring      gl(?:sa|c)_  b30    sntry[su]_  b40    NRAK-  u27    dt0c01\.  d50
Vault, Doppler  hv[sbr]\.  w24    dp\.(?:pt|st|ct|sa)\.  d40
Pulumi          pul-  h40
PlanetScale     pscale_(?:tkn|pw|oauth)_  w30
Azure           AccountKey=  b40    SharedAccessKey=  b40
Facebook        EAA[A-Z0-9]  a90
Mapbox          sk\.eyJ  d40
Airtable        pat[A-Za-z0-9]{14}\.  h60
Tailscale       tskey-  w16
1Password       ops_eyJ  b60
hosting         fm[12]_  b60    vc[paki]_  w20    nfp_  w30
age             AGE-SECRET-KEY-1  u50
"""
"""Services, and of each key: how it begins (with a letter, for speed), the alphabet of the rest,
and how much of that there is at least."""

_JWT = r"eyJ[\w\n-]{10,1000}\.\n?[\w\n-]{10}"
_AWS_SECRET = r"[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/=-]|\.\w)"
_BEARER = r"authorization[\"']?\s?[:=]\s?[\"']?(?:bearer|basic|token)\s[a-z0-9+/=_.~-]{12}"

_JOINED = r"[\"'\]]{0,2}(?:\s{0,3}(?:=>|:=|\?=|=|:)\s{0,3}|>|\s{1,3}value\s?=\s?)"
_QUOTED = r"[fbru]?(?P<quote>[\"'`])(?P<quoted>[^\"'`\n\s]{4,200})(?P=quote)"
_BARE = r"(?P<bare>[^\s\"'`,;&|()\[\]{}<>]{6,200}+)(?![(\[{$]|<[^/])"
_TOKEN_WORDS = (
    r"secret(?:[_-]?(?:access[_-]?)?key)?|api[_-]?(?:key|token)|access[_-]?(?:key|token)"
    r"|auth[_-]?(?:key|token)|sess(?:ion)?[_-]?(?:id|token|key)|refresh[_-]?token|private[_-]?token|bearer[_-]?token|token"
)
_PASSWORD_WORDS = (
    r"pass(?:word|wd|phrase|code|wort)?|pwd|pw|kennwort|mot[ _-]?de[ _-]?passe|mdp|contrase[ñn]a"
    r"|clave|senha|wachtwoord|has[łl]o|pin[_-]?code|пароль|密码|密碼|口令|パスワード|비밀번호|암호"
    r"|parol[aă]|l[öo]senord|passord|adgangskode|kodeord|salasana|heslo|jelsz[óo]|[şs]ifre"
    r"|κωδικός|كلمة (?:المرور|السر)|סיסמ[הא]|m[ậa]t kh[ẩa]u|รหัสผ่าน|पासवर्ड|kata sandi"
)


_ALONE = r"(?<![A-Za-z0-9])"


def holds_key(text: str) -> bool:
    """A key or token of a service, whole or over several lines, or something long and random
    that is called one."""
    joined = unwrap(text)
    return (
        any(occurrences(_key_pattern(), joined, _ALONE))
        or any(occurrences(_JWT, joined, _ALONE))
        or any(occurrences(r":AA[\w-]{32}", text, r"(?<=\d{8})"))  # Telegram
        or any(occurrences(r"8Q~[\w~.-]{30}", text, r"(?<=[\w~.]{3})"))  # Azure
        or holds(_BEARER, text.lower())
        or any(
            _is_aws_secret(found[0])
            for found in occurrences(_AWS_SECRET, text, r"(?<![A-Za-z0-9+/.-])")
        )
        or any(_is_random(value) for value, _ in _values(text.lower(), _TOKEN_WORDS))
    )


@functools.cache
def _key_pattern() -> str:
    rows = re.findall(r"(?<=  )(\S+) +([a-z])(\d+)(?=\s)", _KEYS)
    return "|".join(
        rf"{begin}(?:[{_ALPHABETS[alphabet]}]\n?){{{count}}}" for begin, alphabet, count in rows
    )


def _is_aws_secret(text: str) -> bool:
    """Forty characters by chance: no path, no name and no hash is so mixed."""
    capitals, digits = sum(map(str.isupper, text)), sum(map(str.isdigit, text))
    words = compiled(r"[a-z]{7}|[A-Z]{7}|/[a-z]{4}").search(text)
    return capitals >= 7 and digits >= 2 and 40 - capitals - digits >= 7 and words is None


def holds_private_key(text: str) -> bool:
    """A header, in any letter case, or what follows it."""
    return (
        holds(
            r"-\s?BEGIN\s{1,3}(?:[A-Z0-9]{1,20}\s{1,3}){0,3}PRIVATE\s{1,3}KEY", text, re.IGNORECASE
        )
        or holds(r"PuTTY-User-Key-File-[0-9]", text, re.IGNORECASE)
        # PKCS #8, PKCS #1, SEC 1 and OpenSSH without a header; WireGuard
        or holds(r"MII[A-Za-z0-9+/]{2,5}IBA(?:DANBgk|AKC)|b3BlbnNzaC1rZXktdjE", text)
        or holds(r"\bPrivateKey\s{0,3}=\s{0,3}[A-Za-z0-9+/]{42}", text)
        # JSON Web Key
        or (holds(r"[\"']kty[\"']", text) and holds(r"[\"']d[\"']\s?:\s?[\"'][\w-]{20}", text))
    )


def holds_password(text: str) -> bool:
    """What is assigned to something that is called a password, or stands where one does."""
    small = text.lower()
    return (
        any(_is_password(value, plain=whole) for value, whole in _values(small, _PASSWORD_WORDS))
        or any(
            _is_literal(found[1])
            for hint, pattern in _PASSWORD_PLACES.items()
            if hint in small
            for found in compiled(pattern).finditer(small)
        )
        or any(_is_literal(found[1]) for found in compiled(_SET).finditer(text))
        or any(
            _is_literal(found[1]) and not holds(_SAID_OF_ONE, found[1].lower())
            for found in compiled(_ALONE_ON_LINE).finditer(text)
        )
        or holds(_PIN, text)
        or holds(r"\$(?:[156y]|2[aby]|argon2id?)\$[./\w$=,+-]{20}", text)
    )


_PASSWORD_PLACES = {
    "://": r"[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s:/@\"'<>]{0,64}:([^\s/\"'<>@]{1,128})@",
    "--pass": r"--pass(?:word|wd|phrase)?[ =][\"']?([^\s\"']{4,100})",
    "curl": r"curl\b[^\n]{0,200}?\s(?:-u|--user)[ =]?[\"']?[^\s:\"']{1,64}:([^\s\"']{3,100})",
    "mysql": r"mysql(?:dump)?\b[^\n]{0,200}?\s-p[\"']?([^\s\"'-][^\s\"']{3,100})",
    "sshpass": r"sshpass\s-p ?[\"']?([^\s\"']{4,100})",
    "login": r"login\s\S{1,64}\s{1,20}password\s(\S{1,100})",
    # somebody's own may be short: a digit or a sign inside is enough
    **dict.fromkeys(
        ("my ", "mein", "mi ", "mon ", "mia ", "minha ", "мой "),
        r"(?:my|meine?|mi|mon|mia|minha|мой) (?:[\w-]{1,20}[ -])?(?:password|passphrase|passwort"
        r"|kennwort|mot de passe|contraseña|clave|senha|пароль)"
        r"(?: (?:is|was|ist|lautet|war|est|es|é|è))?"
        r"[: ]{1,3}[\"'`]?((?=[^\s\"'`]{0,60}[^\W\d_])[^\s\"'`]{0,59}[\d@#$%^&*+=~]"
        r"[^\s\"'`]{0,60})(?![^\s\"'`])",
    ),
    " ": r"(?:password|passphrase|passwort|kennwort|mot de passe|contraseña|senha|пароль)"
    r"(?: for \S{1,40}| von \S{1,40})? (?:is|was|ist|lautet|war|est|es|é|è)[: ]{1,3}[\"'`]?"
    r"((?=[^\s\"'`]{0,60}\d)(?=[^\s\"'`]{0,60}[^\W\d])[^\s\"'`]{6,60})",
    # without a blank before and after it
    **{
        hint: rf"{hint}[\s:\"'`「『]{{0,3}}((?=[!-~]{{0,60}}\d)(?=[!-~]{{0,60}}[a-z])[!-~]{{6,60}})"
        for hint in ("密码是", "密码为", "密碼是", "パスワードは", "비밀번호는")
    },
}
"""What a text with such a place holds, and the place."""
_ALONE_ON_LINE = (
    r"(?im)(?<![\w.])(?:password|passwd|passphrase|passwort|kennwort|mot de passe|mdp|contraseña"
    r"|senha|wachtwoord|пароль) ?: ([^\W\d_]{8,60})[.!]?$"
)
"""A line's last word, of letters alone."""
_SAID_OF_ONE = (
    r"pass|secret|hash|requ|option|correct[aeo]?$|valid|forgot|vergessen|olvidad|oubli|expired"
    r"|abgelaufen|missing|disabled|enabled|unknown|protect|encrypt|nullable|string|varchar"
    r"|erforderlich|notwendig|obligat|default|configur|character|zeichen|generat|prompt|stored"
    r"|changed|rejected|accepted|credential|environment|неверн|забыт|необход|undefined"
)
"""What follows such a word and is no password: what is said of one, a type, a variable."""
_PIN = (
    r"(?<![\w.-])(?:PIN|PUK|(?:PIN|Pin|pin)[ -]?(?:[Cc]ode|CODE|[Nn]umber|[Nn]ummer)"
    r"|(?i:my|your|his|her|our|meine?|die|mi|el|mon|le|mio|il|meu|o) (?:[\w-]{1,20} )?(?i:pin|puk))"
    r"(?: (?:is|was|ist|lautet|war|es|est|é|è))?(?: ?[:=] ?| )[\"'`]?\d{4,8}(?![\w-]|[.,:]\d)"
)
"""Lower-case ``pin`` alone is one of a chip, or a verb."""
_SET = r"(?<![A-Za-z0-9_])[A-Z0-9_]{0,40}PASS(?:WORD|WD)?=([^\s\"']{6,100})(?![^\s\"'])"
"""In the environment, where a word is no name of something else."""
_PLACEHOLDER = (
    r"(?:your|my|the|some|new|old|insert|enter|test|fake)[_.-].*|[x*.#•…_-]+"
    r"|.*(?:dummy|sample|example|placeholder|change_?me|redacted|your_).*|(?:pass(?:word|wd|wort)?"
    r"|pwd|secret|user(?:name)?|foo|bar|baz|none|null|nil|true|false|undefined|string|str|value"
    r"|args?|param|key|token|admin|root|guest|sha|md|utf|base|aes|rsa|text|hidden|input|plain"
    r"|required|optional|invalid|missing|default|forgot|reset|login|postgres|mysql)[_-]?\d{0,2}"
)
_PROGRAM = (  # a path, a variable, a small number, an attribute, a template
    r"[/:].*|~/.*|\.\.?/.*|\$\w+|[a-z_]\w*(?:\.[a-z_]\w*)+|-?\d{1,5}(?:\.\d*)?|%\(?\w*\)?[a-z%]?"
    r"|.*(?:\$[{(]|\{\{|<[a-z_ -]+>).*|[<{(\[].*"
)


def _values(small: str, words: str) -> Iterator[tuple[str, bool]]:
    """What is assigned to names that end with one of ``words``, and whether it is the text itself:
    in quotes, or before a semicolon. All is in small letters."""
    name = rf"(?:{words})\d{{0,2}}{_JOINED}"
    for found in compiled(rf"{name}(?:{_QUOTED}|{_BARE})").finditer(small):
        whole = found["quote"] is not None or small[found.end() : found.end() + 1] == ";"
        yield found["quoted"] or found["bare"], whole


def _is_password(value: str, *, plain: bool) -> bool:
    """Whether it looks like one. ``plain``: letters alone may be one, too."""
    mixed = holds(r"\d|[!@#$%^&*+=?~]", value)
    return (mixed or (plain and value.isalpha() and len(value) > 5)) and _is_literal(value)


def _is_literal(value: str) -> bool:
    """Whether it stands for itself, and is no name, path or placeholder of a program."""
    is_placeholder = compiled(_PLACEHOLDER).fullmatch(value.lower())
    return is_placeholder is None and compiled(_PROGRAM).fullmatch(value) is None


def _is_random(value: str) -> bool:
    """Whether it begins with something long that is no name or path of a program."""
    found = compiled(r"[a-z0-9+/=_.~-]{16,}").match(value)
    return (
        found is not None
        and not compiled(_PLACEHOLDER).fullmatch(value)
        and sum(map(str.isdigit, found[0])) >= (2 if len(found[0]) < 32 else 1)
        and holds(r"[a-z]", found[0])
        and not holds(r"^[a-z_]\w*(?:\.[a-z_]\w*)+$", found[0])
    )
