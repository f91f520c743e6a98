"""What who uses the gateway must know: its token, what to set, and how to have it always run."""

from __future__ import annotations

import os
import secrets
import stat
from html import escape
from pathlib import Path

from shammah.errors import ShammahError
from shammah.storage.files import new_file

NAME = "gateway.token"


def read_token(home: Path) -> str:
    """Return the token of ``home``, without which nobody is answered; made if there is none.

    Raises:
        ShammahError: ``gateway_token``: others can read it, or it cannot be read or written.
    """
    path = home / NAME
    try:
        if not path.exists():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with new_file(path) as draft:
                draft.write_text(f"sk-shammah-{secrets.token_urlsafe(32)}\n")
        if stat.S_IMODE(path.stat().st_mode) & 0o077 or path.stat().st_uid != os.getuid():
            hint = f"Remove {path}: the next start makes a new one."
            raise ShammahError("gateway_token", f"Others can read {path}.", hint)
        return path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        what = f"Can't use the token in {path}: {error}."
        raise ShammahError("gateway_token", what, f"Remove {path}.") from error


def describe_use(address: str, end: str, token: str = "") -> str:
    """Where it listens, what to set, and how it ends (``end``). The page's address has the
    ``token``, for a terminal; a log would keep it, and gets the command that prints it."""
    if not address.startswith("http"):
        use = (
            f"  curl --unix-socket {address} http://localhost/v1/models \\\n"
            '    -H "Authorization: Bearer $(shammah serve --token)"'
        )
    else:
        use = (
            f"  export OPENAI_BASE_URL={address}/v1\n"
            f"  export ANTHROPIC_BASE_URL={address}\n"
            "  export OPENAI_API_KEY=$(shammah serve --token)\n"
            "  export ANTHROPIC_API_KEY=$OPENAI_API_KEY\n"
            f"In a browser: {address}/#{token or '$(shammah serve --token)'}"
        )
    return f"Serving at {address}. For other programs, in their own terminal:\n{use}\n{end}"


SYSTEMD = """\
# ~/.config/systemd/user/shammah.service: systemctl --user enable --now shammah
[Unit]
Description=Shammah, for other programs

[Service]
ExecStart={command}
Environment={environment}
Restart=on-failure

[Install]
WantedBy=default.target
"""
LAUNCHD = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- ~/Library/LaunchAgents/shammah.plist: launchctl load -w THAT-PATH -->
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>shammah</string>
  <key>ProgramArguments</key>
  <array>{command}</array>
  <key>EnvironmentVariables</key>
  <dict>{environment}</dict>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
</dict>
</plist>
"""


def describe_unit(kind: str, command: list[str], environment: dict[str, str]) -> str:
    """The unit by which systemd or launchd (``kind``) runs ``command`` whenever its user is logged
    in."""
    if kind == "systemd":
        words = " ".join(f'"{word}"' if " " in word else word for word in command)
        sets = " ".join(f'"{name}={value}"' for name, value in environment.items())
        return SYSTEMD.format(command=words, environment=sets)
    words = "".join(f"<string>{escape(word)}</string>" for word in command)
    sets = "".join(
        f"<key>{name}</key><string>{escape(value)}</string>" for name, value in environment.items()
    )
    return LAUNCHD.format(command=words, environment=sets)
