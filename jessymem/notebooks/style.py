"""How pages and pictures look: colours for light and dark, and one style sheet for all views.

The surroundings' own colours come first: JupyterLab's variables, then those of VS Code. A view
paints its own ground under its own text, so that both fit together wherever it is shown. The
colours of kinds are those of Okabe and Ito, which people who see few colours can tell apart;
lighter on a dark ground.
"""

from __future__ import annotations

from typing import Final

#: What every kind of bytes looks like: (on a light ground, on a dark one).
KINDS: Final = {
    "core_slots": ("#0072b2", "#5aa9e6"),
    "core_headroom": ("#56b4e9", "#a5d8f7"),
    "grown": ("#009e73", "#35c79b"),
    "user": ("#e69f00", "#f3bd4e"),
    "blocks": ("#b65c94", "#e39bc6"),
    "waiting": ("#d55e00", "#ff9a57"),
    "other": ("#6b7280", "#a9b1bd"),
    "metadata": ("#0072b2", "#5aa9e6"),
    "contents": ("#009e73", "#35c79b"),
    "padding": ("#b8bec7", "#5c6470"),
}

_GROUNDS: Final = {
    "text": ("--jp-content-font-color0", "--vscode-foreground", "#1b1f24", "#e8eaed"),
    "faint": ("--jp-content-font-color2", "--vscode-descriptionForeground", "#59636e", "#a2abb6"),
    "ground": ("--jp-layout-color1", "--vscode-editor-background", "#ffffff", "#16191d"),
    "line": ("--jp-border-color1", "--vscode-panel-border", "#c9d0d8", "#454d57"),
    "stripe": ("--jp-layout-color2", "--vscode-textBlockQuote-background", "#f2f4f7", "#22272e"),
}

_FONTS: Final = (
    "--jm-font:var(--jp-ui-font-family,var(--vscode-font-family,system-ui,sans-serif));"
    "--jm-mono:var(--jp-code-font-family,var(--vscode-editor-font-family,ui-monospace,monospace));"
)

_DARK_PLACES: Final = (
    '[data-jp-theme-light="false"]',
    "body.vscode-dark",
    "body.vscode-high-contrast:not(.vscode-high-contrast-light)",
    'html[data-theme="dark"]',
    'html[theme="dark"]',
)
_LIGHT_PLACES: Final = (
    '[data-jp-theme-light="true"]',
    "body.vscode-light",
    "body.vscode-high-contrast-light",
    'html[data-theme="light"]',
    'html[theme="light"]',
)


def _colours(at: int) -> str:
    """Write the colours for a light ground (0), or a dark one (1)."""
    grounds = (
        f"--jm-{name}:var({jupyter},var({code},{fallbacks[at]}));"
        for name, (jupyter, code, *fallbacks) in _GROUNDS.items()
    )
    kinds = (f"--jm-{name}:{pair[at]};" for name, pair in KINDS.items())
    return "".join([*grounds, *kinds])


def themed(scope: str) -> str:
    """Return the rules that give what is in `scope` its colours, light or dark."""
    light, dark = _colours(0), _colours(1)
    return (
        f"{scope}{{{light}{_FONTS}color-scheme:light dark}}"
        f"@media(prefers-color-scheme:dark){{{scope}{{{dark}}}}}"
        f":is({','.join(_LIGHT_PLACES)}) {scope}{{{light}color-scheme:light}}"
        f":is({','.join(_DARK_PLACES)}) {scope}{{{dark}color-scheme:dark}}"
    )


def _fills() -> str:
    return "".join(f".jm-view .jm-{name}{{background:var(--jm-{name})}}" for name in KINDS)


_RULES: Final = """
.jm-text{display:none}
.jm-view{display:block!important;box-sizing:border-box;max-width:900px;padding:8px 12px;
border:1px solid var(--jm-line);border-radius:4px;background:var(--jm-ground);color:var(--jm-text);
font:13px/1.5 var(--jm-font)}
.jm-view bdi{unicode-bidi:isolate;overflow-wrap:anywhere}
.jm-head{padding-bottom:6px;margin-bottom:6px;border-bottom:1px solid var(--jm-line)}
.jm-kind{font-weight:600}
.jm-view .jm-about,.jm-view .jm-note{color:var(--jm-faint)}
.jm-view .jm-note{margin-top:4px;margin-bottom:2px}
.jm-view .jm-bad{color:var(--jm-waiting);font-weight:600}
.jm-view details{margin:2px 0}
.jm-view summary{cursor:pointer;padding:2px 0;font-weight:500}
.jm-view summary .jm-about{font-weight:400}
.jm-view details>:not(summary){margin-left:14px}
.jm-view .jm-scroll{overflow-x:auto}
.jm-view table{border-collapse:collapse;margin:2px 0 4px;border:0;font-size:12px;color:inherit;
table-layout:auto}
.jm-view th,.jm-view td{padding:2px 9px 2px 0;line-height:1.4;border:0;text-align:left;
vertical-align:top;white-space:nowrap;max-width:none;background:none;color:inherit}
.jm-view th{font-weight:500;color:var(--jm-faint);border-bottom:1px solid var(--jm-line)}
.jm-view thead tr,.jm-view tbody tr,.jm-view tr:nth-child(odd),
.jm-view tbody tr:nth-child(odd){background:none}
.jm-view tbody tr:hover{background:var(--jm-stripe)}
.jm-view .jm-n{text-align:right;font-variant-numeric:tabular-nums}
.jm-view dl.jm-facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:1px 14px;
margin-top:2px;margin-bottom:4px;font-size:12px}
.jm-view dt,.jm-view dd{display:block;float:none;width:auto;margin:0;padding:0}
.jm-view dt{color:var(--jm-faint);font-weight:400}
.jm-view dd{min-width:0}
.jm-view pre{margin-top:2px;margin-bottom:6px;padding:6px 8px;border:0;
background:var(--jm-stripe);color:inherit;font:12px/1.45 var(--jm-mono);
white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
.jm-view .jm-chips{display:flex;flex-wrap:wrap;gap:3px}
.jm-view .jm-chip{padding:0 6px;border-radius:3px;background:var(--jm-stripe);font-size:12px}
.jm-view .jm-bar{position:relative;display:flex;height:14px;margin:4px 0;overflow:hidden;
border-radius:3px;background:var(--jm-stripe);box-shadow:inset 0 0 0 1px var(--jm-line)}
.jm-view .jm-bar i{flex:none;height:100%;min-width:1px;box-shadow:inset -1px 0 var(--jm-ground)}
.jm-view .jm-bar b{position:absolute;top:0;bottom:0;width:0;border-left:1px dashed var(--jm-text)}
.jm-view .jm-small{width:90px;height:10px;margin:4px 0}
.jm-view .jm-legend{display:flex;flex-wrap:wrap;gap:0 14px;font-size:12px}
.jm-view .jm-key{display:inline-block;width:10px;height:10px;margin-right:5px;border-radius:2px}
"""

# The class stands twice in each rule, which so counts more than JupyterLab's rules for any HTML.
STYLE: Final = themed(".jm-view") + (
    ("".join(_RULES.splitlines()) + _fills()).replace(".jm-view", ".jm-view.jm-view")
)
