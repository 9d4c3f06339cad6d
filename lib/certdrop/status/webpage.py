"""The status as one web page: each certificate as a bar over time, what fails, keys, and the orders of the last weeks.

The page is whole in itself: no script, no font, nothing from elsewhere, and a policy in it that forbids them. All text is escaped here, at one
place, and each number is computed. Runs as: whoever imports it. Trusts: values that evidence.py cleaned, and not even those. Reads and writes: nothing.
"""

from __future__ import annotations

import calendar
import html
import time
from dataclasses import dataclass, field

from certdrop.events import clean, stamp
from certdrop.status import table
from certdrop.watcher import verdict
from certdrop.watcher.evidence import Orders, Past, Run
from certdrop.watcher.phrases import ran_last, revocation, span
from certdrop.watcher.verdict import DAY, Verdict

BACK, AHEAD = 60 * DAY, 100 * DAY              # of the time that is shown, at most, around now; the lifetimes of certificates that last longer are cut
_CLASS = {verdict.OK: "ok", verdict.WARNING: "warn", verdict.CRITICAL: "bad"}
_STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1c2024;--dim:#687078;--line:#d8dce0;--panel:#f4f6f8;--ok:#2f855a;--warn:#b7791f;--bad:#c53030;--past:#c3cad1}
@media(prefers-color-scheme:dark){:root{--back:#15181b;--text:#e6e8ea;--dim:#98a0a8;--line:#343a40;--panel:#1e2226;--ok:#48a878;--warn:#d69e2e;--bad:#f56565;--past:#4a525a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem;background:var(--back);color:var(--text);font:15px/1.45 system-ui,sans-serif}
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:1.8rem 0 .5rem}p{margin:.3rem 0}
.dim{color:var(--dim)}.ok{color:var(--ok)}.warn{color:var(--warn)}.bad{color:var(--bad)}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0 0;padding:0}
.tiles li{list-style:none;background:var(--panel);border-radius:.4rem;padding:.5rem .8rem;min-width:7rem}.tiles b{display:block;font-size:1.25rem}
.site{border-top:1px solid var(--line);padding:.5rem 0;break-inside:avoid}
.site summary{display:grid;grid-template-columns:minmax(8rem,1fr) minmax(0,3fr) 11rem;gap:.8rem;align-items:center;cursor:pointer;list-style:none}
.site summary::-webkit-details-marker{display:none}
.name{font-weight:600;overflow-wrap:anywhere}.said{text-align:right;font-size:.9rem}
.time{position:relative;height:1.7rem;background:var(--panel);border-radius:.25rem;overflow:hidden}
.time i{position:absolute;display:block}
.life{top:.3rem;height:.8rem;border-radius:.2rem;background:var(--ok)}.life.warn{background:var(--warn)}.life.bad{background:var(--bad)}
.gone{top:.3rem;height:.8rem;background:var(--back);opacity:.55}.past{bottom:.2rem;height:.25rem;background:var(--past);border-radius:.1rem}
.window{top:0;height:1.7rem;background:var(--text);opacity:.16}.renew{top:0;height:1.7rem;width:2px;background:var(--text)}
.now{top:0;height:1.7rem;width:0;border-left:1px dashed var(--dim)}
dl{display:grid;grid-template-columns:8rem minmax(0,1fr);gap:.15rem .8rem;margin:.5rem 0 .3rem;font-size:.9rem}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
.scale{position:relative;height:1.3rem;font-size:.8rem;color:var(--dim)}.scale span{position:absolute;transform:translateX(-50%);white-space:nowrap}
.days{display:flex;align-items:flex-end;gap:1px;height:5rem;border-bottom:1px solid var(--line)}
.days span{flex:1;display:flex;flex-direction:column-reverse;height:100%}
.days i{display:block;background:var(--ok)}.days .f{background:var(--bad)}.days .o{background:var(--past)}
@media(max-width:40rem){.site summary{grid-template-columns:1fr auto}.time{grid-column:1/3;grid-row:2}
dl{grid-template-columns:1fr}dt{margin-top:.3rem}.months{display:none}}
@media print{body{max-width:none;font-size:11px}.site summary{cursor:auto}}
"""
_LEGEND = "<p class=\"dim\">A bar is a certificate's lifetime, pale where it is gone; thin bars below it are the certificates before. The line across is the " \
          "moment of renewal, the shade the CA's renewal window, the dashes are now. Open a row for the details.</p>"


@dataclass
class Page:
    """All that the page shows."""

    host: str
    sites: list[Verdict]
    past: dict[str, list[Past]]                # by site: the certificates that are kept
    orders: Orders = field(default_factory=Orders)
    runs: dict[str, Run] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)           # of the host: (severity, sentence)
    now: float = 0.0


def render(page: Page) -> str:
    """The page, ASCII: what is beyond that is written as references."""
    begin, end = _extent(page)
    worst = max([severity for severity, _ in page.problems] + [site.severity for site in page.sites], default=verdict.OK)
    head = f"<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{_text('certificates on ' + page.host)}</title>" \
           "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><meta name=\"referrer\" content=\"no-referrer\">" \
           "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">" \
           f"<meta name=\"robots\" content=\"noindex\"><style>{_STYLE}</style></head><body>"
    words = {verdict.OK: "All is well", verdict.WARNING: "Something wants to be looked at", verdict.CRITICAL: "Something is wrong"}[worst]
    parts = [head, f"<h1 class=\"{_CLASS[worst]}\">{words}</h1><p class=\"dim\">{_text(page.host)}, {stamp(page.now)}</p>", _tiles(page)]
    troubles = [f"<p class=\"{_CLASS[severity]}\">{_text(said)}</p>" for severity, said in page.problems]
    troubles += [_failing(site, page.now) for site in sorted(page.sites, key=lambda site: -site.severity) if site.severity or site.last_error]
    if troubles:
        parts += ["<h2>What is wrong</h2>", *troubles]
    parts += ["<h2>Certificates</h2>", _scale(begin, end, page.now)]
    parts += [_site(site, page.past.get(site.evidence.name, []), begin, end, page.now) for site in page.sites]
    parts.append(_LEGEND if page.sites else "<p>No site yet: <code>certdrop add</code> adds one.</p>")
    parts += [_orders(page.orders, page.now), f"<p class=\"dim\">{_text(', '.join(f'{who} {ran_last(run, page.now)}' for who, run in page.runs.items()))}</p>",
              "</body></html>\n"]
    return "\n".join(part for part in parts if part)


def _tiles(page: Page) -> str:
    ends = [site.days_left * DAY for site in page.sites if site.days_left is not None]
    renews = [site.renew_at for site in page.sites if site.renew_at]
    counts = [("sites", str(len(page.sites)), "")]
    for severity, word in ((verdict.CRITICAL, "critical"), (verdict.WARNING, "warnings")):
        if any(site.severity == severity for site in page.sites):
            counts.append((word, str(sum(site.severity == severity for site in page.sites)), _CLASS[severity]))
    if ends:
        counts.append(("to the nearest end", span(max(0, min(ends))), ""))
    if renews:
        counts.append(("to the next renewal", span(max(0, min(renews) - page.now)), ""))
    return "<ul class=\"tiles\">" + "".join(f"<li><b class=\"{kind}\">{_text(value)}</b>{_text(word)}</li>" for word, value, kind in counts) + "</ul>"


def _failing(site: Verdict, now: float) -> str:
    said = [table.explain(site, now)] if site.last_error else []
    said += [site.browsers] if site.browsers and site.browsers != site.last_error else []
    return f"<p><b>{_text(site.evidence.name)}</b> <span class=\"{_CLASS[site.severity]}\">{_text(site.state)}</span> {_text('; '.join(said))}</p>"


def _site(site: Verdict, past: list[Past], begin: float, end: float, now: float) -> str:
    found, kind = site.evidence, _CLASS[site.severity]
    live = None if found.placeholder else found.certificate
    marks = [_mark("past", old.not_before, old.not_after, begin, end) for old in past if old.number != found.live]
    if live:
        marks += [_mark(f"life {kind}", live.not_before, live.not_after, begin, end), _mark("gone", live.not_before, min(now, live.not_after), begin, end)]
    if found.window:
        marks.append(_mark("window", *found.window, begin, end))
    if live and site.renew_at:
        marks.append(_mark("renew", site.renew_at, site.renew_at, begin, end))
    marks.append(_mark("now", now, now, begin, end))
    left = "no certificate yet" if site.days_left is None else f"{span(site.days_left * DAY)} left" if site.days_left > 0 else "ended"
    more = f" <span class=\"dim\">+{len(found.domains) - 1}</span>" if len(found.domains) > 1 else ""
    rows = [("state", site.state), ("names", " ".join(found.domains)), ("valid", f"{stamp(live.not_before)} to {stamp(live.not_after)}" if live else ""),
            ("renews", f"{stamp(site.renew_at)} ({site.renew_why})" if site.renew_at else site.renew_why),
            ("fingerprint", live.sha256 if live else ""),
            ("key", f"{found.key}, {span(max(0, now - found.key_created))} old" if found.key_created else ""),
            ("next key", f"SHA-256 of its SPKI {found.next_spki}" + (f", {span(max(0, now - found.next_key_created))} old" if found.next_key_created else "")
             if found.next_spki else ""),
            ("kept", ", ".join(f"{old.number:04d} until {stamp(old.not_after)}" for old in past if old.number != found.live)),
            *(("revocation", revocation(one, now)) for one in found.revocations), *(("disorder", text) for text in found.disorder)]
    listed = "".join(f"<dt>{label}</dt><dd>{_text(text)}</dd>" for label, text in rows if text)
    return f"<details class=\"site\"><summary><span class=\"name\">{_text(found.name)}{more}</span><span class=\"time\">{''.join(marks)}</span>" \
           f"<span class=\"said\"><span class=\"{kind}\">{_text(site.state)}</span><br><span class=\"dim\">{_text(left)}</span></span></summary>" \
           f"<dl>{listed}</dl></details>"


def _orders(orders: Orders, now: float) -> str:
    """A column a day, the last 90; a day without orders is a gap."""
    days = [time.strftime("%Y-%m-%d", time.gmtime(now - back * DAY)) for back in range(89, -1, -1)]
    known = {day: counts for day, *counts in orders.days if day in days}
    most = max([max(placed, issued + failed) for placed, issued, failed in known.values()], default=0)
    if not most:
        return ""
    columns = []
    for day in days:
        placed, issued, failed = known.get(day, (0, 0, 0))
        heights = [("", issued), ("f", failed), ("o", max(0, placed - issued - failed))]
        bars = "".join(f"<i class=\"{kind}\" style=\"height:{100 * count / most:.1f}%\"></i>" for kind, count in heights if count)
        columns.append(f"<span title=\"{day}: orders {placed}, certificates {issued}, failed validations {failed}\">{bars}</span>")
    total = [sum(counts[at] for counts in known.values()) for at in range(3)]
    budget = f" New orders in three hours, at {stamp(orders.at)}: {orders.recent} of {orders.limit}." if orders.limit and orders.at else ""
    return f"<h2>Orders of the last 90 days</h2><div class=\"days\">{''.join(columns)}</div>" \
           f"<p class=\"dim\">{total[0]} orders, {total[1]} certificates, {total[2]} failed validations.{budget} The highest column is {most}.</p>"


def _scale(begin: float, end: float, now: float) -> str:
    """The months that begin in the time that is shown, over the bars."""
    marks = []
    year, month = time.gmtime(begin)[:2]
    while True:
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
        at = calendar.timegm((year, month, 1, 0, 0, 0, 0, 0, 0))
        if at >= end:
            break
        marks.append(f"<span style=\"left:{_share(at, begin, end):.2f}%\">{year}-{month:02d}</span>")
    return "<div class=\"site months\"><div style=\"display:grid;grid-template-columns:minmax(8rem,1fr) minmax(0,3fr) 11rem;gap:.8rem\"><span></span>" \
           f"<div class=\"scale\">{''.join(marks)}</div><span></span></div></div>"


def _extent(page: Page) -> tuple[float, float]:
    """Which time the bars show: the certificates that are kept, but not more than BACK and AHEAD."""
    begins = [old.not_before for kept in page.past.values() for old in kept]
    begins += [site.evidence.certificate.not_before for site in page.sites if site.evidence.certificate and not site.evidence.placeholder]
    ends = [site.evidence.certificate.not_after for site in page.sites if site.evidence.certificate and not site.evidence.placeholder]
    begin = max(page.now - BACK, min(begins, default=page.now - BACK))
    end = min(page.now + AHEAD, max(ends, default=page.now + AHEAD))
    return min(begin, page.now - DAY), max(end, page.now + DAY)


def _mark(kind: str, left: float, right: float, begin: float, end: float) -> str:
    """A piece of the bar; nothing where it lies beyond what is shown."""
    first, last = _share(left, begin, end), _share(right, begin, end)
    if right < begin or left > end:
        return ""
    width = f";width:{last - first:.2f}%" if right > left else ""
    return f"<i class=\"{kind}\" style=\"left:{first:.2f}%{width}\"></i>"


def _share(moment: float, begin: float, end: float) -> float:
    return min(100.0, max(0.0, 100 * (moment - begin) / (end - begin)))


def _text(text: str) -> str:
    """Text of anybody's, harmless in an element: cleaned, escaped, and ASCII."""
    return html.escape(clean(text, 1000)).encode("ascii", "xmlcharrefreplace").decode("ascii")
