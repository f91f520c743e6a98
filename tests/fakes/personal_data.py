"""Personal data that nobody has, in the forms in which people write it, inside ordinary text.

Check digits are computed here anew, so that a mistake in the rules is not made twice.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from random import Random

LETTERS = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
BASE64URL = LETTERS + "-_"

SENTENCES = (
    # English, German, French, Spanish, Russian, Chinese
    "Could you tell me whether {} is the right one to use here?",
    "My notes of yesterday say: {}. What do I do with that?",
    "Please translate this into French: I gave her {} at 9.30.",
    "Kannst du mir sagen, ob {} so stimmt?",
    "In der Akte steht {}; bitte fasse den Vorgang in zwei Sätzen zusammen.",
    "Peux-tu vérifier {} avant que je réponde au client ?",
    "Voici ce qu'il m'a donné : {}, et rien d'autre.",
    "¿Puedes explicarme qué significa {} en esta carta?",
    "Me escribió ayer con esto: {}. ¿Qué contesto?",
    "Проверь, пожалуйста, {} и напиши ответ.",
    "\u0412 письме указано {}, что это значит?",
    "请帮我看看{}是不是正确的。",
    "他给我的是\uff1a{}\uff0c我该怎么回复\uff1f",
)
CODE = (
    'contact = "{}"  # from the old system\nprint(contact)',
    "customer:\n  - note: {}\n    open: true",
    '{{"id": 17, "note": "{}", "tags": ["a", "b"]}}',
    "INSERT INTO notes (id, text) VALUES (4, '{}');",
    "export NOTE='{}'\n./run.sh --fast",
    "/* {} */\nint main(void) {{ return 0; }}",
    "2026-11-28T09:32:58Z INFO request 7f3a done: {}",
    "| name | value |\n|---|---|\n| it | {} |",
    "<td>{}</td>",
    "> He wrote:\n> {}\n> What now?",
)
INVISIBLE = ("\u200b", "\u00ad", "\u2060", "\ufeff", "\u200d")


def draw(random: Random) -> tuple[str, str, str]:
    """A rule, something that it is to find, and a text with that inside."""
    rule = random.choice([*MAKERS])
    data = disguise(random, MAKERS[rule](random), keep_blanks=rule == "passwords")
    return rule, data, random.choice(SENTENCES + CODE).format(data)


def disguise(random: Random, data: str, *, keep_blanks: bool = False) -> str:
    """``data`` as it comes out of a PDF, a web page or a word processor."""
    match random.randrange(6):
        case 0:
            at = random.randrange(1, len(data))
            return data[:at] + random.choice(INVISIBLE) + data[at:]
        case 1 if not keep_blanks:
            return data.replace(" ", random.choice("\u00a0\u2009\u202f"))
        case 2 if not keep_blanks:
            return data.replace("-", random.choice("\u2010\u2011\u2013"))
        case 3 if data.replace(" ", "").isdigit():
            return "".join(chr(ord(d) + 0xFEE0) if d.isdigit() else d for d in data)
    return data


def some(random: Random, alphabet: str, count: int) -> str:
    return "".join(random.choices(alphabet, k=count))


def digits(random: Random, pattern: str) -> str:
    """``pattern`` with a digit for each #, from 2 to 9 for each N."""
    filled = (
        random.choice("0123456789") if c == "#" else random.choice("23456789") if c == "N" else c
        for c in pattern
    )
    return "".join(filled)


def grouped(random: Random, text: str, sizes: tuple[int, ...] = (4,) * 9) -> str:
    """``text`` in groups, with one of what people put between them."""
    separator = random.choice((" ", " ", "-", ".", "\t", "  ", "\n", "", ""))
    groups, at = [], 0
    for size in sizes:
        groups.append(text[at : at + size])
        at += size
    return separator.join(filter(None, groups))


def make_mail(random: Random) -> str:
    name = random.choice(
        ("jo", "mary.ann", "o'neil", "x_y-z", "иван", "max+shop", "用户", "müller")
    )
    at = random.choice(
        ("acme.de", "mail.acme.co.uk", "müller.de", "почта.рф", "xn--mller-kva.de", "例子.公司")
    )
    forms = (
        f"{name}@{at}",
        f"{name}@{at}",
        f"<{name}@{at}>",
        f"Doe, Jo <{name}@{at}>",
        f'"jo doe"@{at}',
        f"mailto:{name}%40{at}",
        f"{name} [at] {at}",
        f"{name}(at){at}",
        f"{name.upper()}@{at.upper()}",
    )
    return random.choice(forms)


def make_phone(random: Random) -> str:
    forms = (
        *("+49 N# #######", "+49 (0)N# ### ## ##", "+4917########", "0N# #######", "(0N#) ######"),
        *("0171-#######", "0171/#######", "+1 N## N##-####", "+1 (N##) N##-####", "1-8##-N##-####"),
        *("(N##) N##-####", "N##-N##-####", "N##.N##.####", "+33 6 ## ## ## ##", "06 ## ## ## ##"),
        *("01.##.##.##.##", "+44 20 7### ####", "020 7### ####", "07### ######", "+34 6## ### ###"),
        *("6## ## ## ##", "+39 3## #######", "+7 9## ###-##-##", "8 (9##) ###-##-##"),
        *(
            "+86 13# #### ####",
            "13# #### ####",
            "+91 9#### #####",
            "98### #####",
            "(11) 9####-####",
        ),
        *(
            "+55 11 9####-####",
            "090-####-####",
            "+81 90 #### ####",
            "Tel. #######",
            "044 6## ## ##",
        ),
        *("0041 44 ### ## ##", "+48 6## ### ###", "+31 6 ########", "+90 5## ### ## ##"),
    )
    return digits(random, random.choice(forms))


def make_card(random: Random) -> str:
    start, length = random.choice(
        (("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16), ("3528", 16), ("62", 16))
    )
    number = start + some(random, "0123456789", length - len(start) - 1)
    doubled = [int(d) * (2 - place % 2) for place, d in enumerate(reversed(number))]
    number += str(-sum(d // 10 + d % 10 for d in doubled) % 10)
    return grouped(random, number, (4, 6, 5) if length == 15 else (4,) * 4)


def make_iban(random: Random) -> str:
    account = digits(
        random,
        random.choice(
            (
                *("DE" + "#" * 18, "GBWEST" + "#" * 14, "FR" + "#" * 10 + "A1B2C3D4E5F##"),
                *("BE" + "#" * 12, "ES" + "#" * 20, "ITX" + "#" * 22, "PL" + "#" * 24),
                *("CH" + "#" * 17, "AT" + "#" * 16, "SE" + "#" * 20, "TR" + "#" * 22),
            )
        ),
    )
    rest = account[2:] + account[:2] + "00"
    check = 98 - int("".join(str(int(c, 36)) for c in rest)) % 97
    iban = f"{account[:2]}{check:02}{account[2:]}"
    written = grouped(random, random.choice((iban, iban, iban.lower(), iban.title())))
    return random.choice(("", "", "IBAN", "IBAN: ", "AB12 ")) + written


def make_identity(random: Random) -> str:
    year, month, day = random.randint(1940, 2010), random.randint(1, 12), random.randint(1, 28)
    match random.randrange(7):
        case 0:
            number = digits(random, f"N#0105{year}{month:02}{day:02}###")
            total = sum(int(d) * 2 ** (17 - place) for place, d in enumerate(number))
            number = f"1{number[1:]}" if number[0] == "9" else number
            total = sum(int(d) * 2 ** (17 - place) for place, d in enumerate(number))
            return number + "10X98765432"[total % 11]
        case 1:
            number = digits(random, "########")
            return number + "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]
        case 2:
            number = digits(random, f"1{year % 100:02}{month:02}75######")
            whole = f"{number}{97 - int(number) % 97:02}"
            return random.choice(
                (
                    whole,
                    f"{whole[0]} {whole[1:3]} {whole[3:5]} {whole[5:7]} "
                    f"{whole[7:10]} {whole[10:13]} {whole[13:]}",
                )
            )
        case 3:
            number = digits(random, "#########")
            for least in (10, 11):
                rest = sum(int(d) * (least - place) for place, d in enumerate(number)) % 11
                number += str(0 if rest < 2 else 11 - rest)
            return f"{number[:3]}.{number[3:6]}.{number[6:9]}-{number[9:]}"
        case 4:
            return digits(random, "N#N-4#-7###").replace("9", "1")
        case 5:
            words = (
                "SSN",
                "passport number",
                "Steuer-ID",
                "CPF",
                "ИНН",
                "身份证号码",
                "DNI",
                "Aadhaar",
            )
            return f"{random.choice(words)}: {digits(random, '#########')}"
    return random.choice(
        ("RCCMNL83S18D969H", "BOXW310820HNERXN09", "2341 2341 2346", "112-233-445 95")
    )


def make_key(random: Random) -> str:
    start, alphabet, count = random.choice(
        (
            *(("sk-ant-api03-", BASE64URL, 90), ("sk-proj-", LETTERS, 48), ("sk-", HEX, 32)),
            *(("AKIA", string.ascii_uppercase + "234567", 16), ("AIza", BASE64URL, 35)),
            *(("GOCSPX-", BASE64URL, 28), ("ya29.", BASE64URL, 60), ("ghp_", LETTERS, 36)),
            *(("github_pat_", LETTERS, 70), ("glpat-", BASE64URL, 20), ("gldt-", BASE64URL, 20)),
            *(
                ("xoxb-", string.digits, 24),
                ("hf_", string.ascii_letters, 34),
                ("npm_", LETTERS, 36),
            ),
            *(("pypi-AgEI", BASE64URL, 80), ("sk_live_", LETTERS, 24), ("whsec_", LETTERS, 32)),
            *(("dop_v1_", HEX, 64), ("dckr_pat_", BASE64URL, 27), ("shpat_", HEX, 32)),
            *(("1234567890:AA", BASE64URL, 33), ("hvs.", BASE64URL, 90), ("gsk_", LETTERS, 52)),
            *(("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx", BASE64URL, 60), ("dapi", HEX, 32)),
            *(("api_key=", LETTERS, 32), ("client_secret: ", LETTERS, 40), ("token = ", HEX, 40)),
        )
    )
    key = start + some(random, alphabet, count)
    if random.random() < 0.2 and len(key) > 60:
        return "\n".join(key[at : at + 40] for at in range(0, len(key), 40))
    return key


def make_private_key(random: Random) -> str:
    kind = random.choice(("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "))
    header = f"-----BEGIN {kind}PRIVATE KEY-----"
    return random.choice((header, header.lower(), header.title()))


def make_password(random: Random) -> str:
    word = some(random, LETTERS, 7) + random.choice("!?#%+=") + some(random, "0123456789", 2)
    forms = (
        *("password={}", "DB_PASSWORD={}", "password: {}", "Passwort: {}", "mot de passe : {}"),
        *("contraseña: {}", "пароль: {}", "密码\uff1a{}", "my password is {}", "pwd={};"),
        *("postgres://app:{}@db.internal/app", "mysql -u root -p{} shop", "curl -u jo:{} -s"),
    )
    return random.choice(forms).format(word)


MAKERS: dict[str, Callable[[Random], str]] = {
    "api_keys": make_key,
    "private_keys": make_private_key,
    "passwords": make_password,
    "emails": make_mail,
    "cards": make_card,
    "ibans": make_iban,
    "identity_numbers": make_identity,
    "phones": make_phone,
}
"""A maker for each rule that is on."""
