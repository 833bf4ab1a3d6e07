"""The page that people look at; everything it needs is in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import Template

from guestbook.database import Entry
from guestbook.settings import Settings

ACCENT = "#2563eb"

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { --accent: $accent; --ink: #16181d; --soft: #646b79; --line: #e4e7ec; --paper: #fff;
        --ground: #f5f6f8; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceef2; --soft: #98a0ae; --line: #2c313b; --paper: #1b1e25; --ground: #121419; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
header { background: var(--accent); color: #fff; padding: 2.5rem 1.25rem; }
header > div, main { max-width: 44rem; margin: 0 auto; }
header > div { display: flex; align-items: center; justify-content: space-between; gap: 1rem; }
h1 { margin: 0; font-size: 2rem; letter-spacing: -.02em; }
header p { margin: .25rem 0 0; opacity: .85; }
.version { font-size: 5rem; font-weight: 800; line-height: 1; letter-spacing: -.04em; }
.version small { font-size: 2rem; font-weight: 600; opacity: .75; }
main { padding: 1.5rem 1.25rem 3rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
        padding: 1rem 1.25rem; margin-bottom: .75rem; overflow-wrap: anywhere; }
form.card { display: grid; grid-template-columns: 10rem 1fr auto; gap: .6rem;
            margin-bottom: 1.5rem; }
@media (max-width: 38rem) { form.card { grid-template-columns: 1fr; } }
input, button { font: inherit; padding: .55rem .8rem; border-radius: 8px; min-width: 0;
                border: 1px solid var(--line); background: var(--ground); color: inherit; }
input:focus-visible, button:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
button { background: var(--accent); border-color: var(--accent); color: #fff; font-weight: 600;
         cursor: pointer; }
.card p { margin: 0; }
.card footer { color: var(--soft); font-size: .85rem; margin-top: .35rem; }
.empty { color: var(--soft); text-align: center; padding: 2rem 1.25rem; }
main > footer { color: var(--soft); font-size: .85rem; text-align: center; margin-top: 2rem; }
code { font: .95em ui-monospace, monospace; }
</style>
</head>
<body>
<header><div>
  <div><h1>$title</h1><p>answered by <code>$machine</code> in $environment</p></div>
  <div class="version"><small>v</small>$version</div>
</div></header>
<main>
<form class="card" method="post" action="/entries">
  <input name="author" placeholder="Your name" aria-label="Your name" maxlength="60" required>
  <input name="message" placeholder="Say something kind" aria-label="Your message" maxlength="500"
         required>
  <button>Sign</button>
</form>
$entries
<footer>Version $version, running on an image that never changes.</footer>
</main>
</body>
</html>
""")

ENTRY = Template(
    '<article class="card"><p>$message</p>'
    '<footer><b>$author</b> · <time datetime="$iso">$time</time></footer></article>'
)


def render(settings: Settings, entries: Sequence[Entry] | None) -> str:
    """Return the page as HTML.

    Args:
        settings: Of this machine.
        entries: To show; None when the database does not answer.
    """
    if entries is None:
        listed = '<p class="card empty">The guestbook is closed for a moment. Please try again.</p>'
    else:
        listed = "\n".join(map(_entry, entries)) or (
            '<p class="card empty">Nobody has signed yet. Be the first!</p>'
        )
    return PAGE.substitute(
        title=escape(settings.title),
        accent=ACCENT,
        machine=escape(settings.machine),
        environment=escape(settings.environment),
        version=escape(settings.version),
        entries=listed,
    )


def _entry(entry: Entry) -> str:
    return ENTRY.substitute(
        message=escape(entry["message"]),
        author=escape(entry["author"]),
        iso=entry["created_at"].isoformat(),
        time=f"{entry['created_at']:%-d %B %Y, %H:%M} UTC",
    )
