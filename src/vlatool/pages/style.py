"""How the pages of `inspect --html` look, and the few lines that make their charts answer.

The line colours are those of Okabe and Ito, which colour-blind people tell apart; the dark page
has lighter ones of the same hues.
"""

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f6f3; --card: #ffffff; --ink: #1f2328; --quiet: #667079; --line: #e3e3de;
  --soft: #f0f0ec; --accent: #0b62a8; --warn: #9a5b00; --warn-bg: #fdf3e1; --shade: #8b929926;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5538c; --c4: #c98a00; --c5: #3d9bd6;
  --c6: #7a7a7a; --c7: #6a4fb3; --arm0: #00b7ff; --arm1: #ff8c00; --arm2: #d16bff; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171a; --card: #1c2024; --ink: #e6e8ea; --quiet: #98a2ab; --line: #2f353b;
  --soft: #252a2f; --accent: #6cb6f5; --warn: #f0b95a; --warn-bg: #33290f; --shade: #aab2ba26;
  --c0: #4aa8e8; --c1: #ff8a3d; --c2: #2ecc9b; --c3: #e08fbf; --c4: #f0b429; --c5: #8fd0f8;
  --c6: #b0b0b0; --c7: #a894ea; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.frame { display: grid; grid-template-columns: 15rem minmax(0, 1fr); gap: 2.2rem;
  max-width: 88rem; margin: 0 auto; padding: 0 1.6rem; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto;
  padding: 2.4rem 0 2rem; font-size: .86rem; }
nav b { display: block; font-size: .72rem; letter-spacing: .08em; text-transform: uppercase;
  color: var(--quiet); margin: 0 0 .5rem .8rem; }
nav a { display: block; color: var(--quiet); text-decoration: none; padding: .2rem .8rem;
  border-left: 2px solid var(--line); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
nav a.under { padding-left: 1.5rem; font-size: .8rem; }
nav a:hover { color: var(--accent); border-color: var(--accent); }
main { padding: 2.2rem 0 4rem; min-width: 0; }
header { margin: 0 0 1.6rem; }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .3rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; letter-spacing: -.01em; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 1.5rem 0 .5rem; }
p { margin: .3rem 0 .7rem; max-width: 46rem; }
.quiet { color: var(--quiet); } small, .small { font-size: .82rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.2rem 1.4rem 1.4rem; margin: 0 0 1.3rem; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: break-word; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem 2.4rem; margin: 0 0 .4rem; }
.tiles div b { display: block; font-size: 1.35rem; font-weight: 600; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
.tiles div span { color: var(--quiet); font-size: .82rem; }
.tag { display: inline-block; background: var(--soft); border-radius: 5px; padding: .05rem .45rem;
  margin: 0 .35rem .3rem 0; font-size: .8rem; color: var(--quiet); overflow-wrap: anywhere; }
.tag b { color: var(--ink); font-weight: 600; }
.note { background: var(--warn-bg); color: var(--warn); border-radius: 7px;
  padding: .45rem .8rem; margin: .5rem 0; overflow-wrap: anywhere; font-size: .86rem;
  max-width: none; }
.part { margin: 2.2rem 0 .9rem; } .part h2 { margin: 0; } .part p { margin: 0; }
.wide { overflow-x: auto; } .wide + .wide { margin-top: .9rem; }
table { border-collapse: collapse; font-size: .86rem; }
th { text-align: left; font-weight: 600; color: var(--quiet); font-size: .78rem;
  padding: .2rem 1.4rem .2rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td { padding: .2rem 1.4rem .2rem 0; border-bottom: 1px solid var(--line);
  vertical-align: middle; overflow-wrap: break-word; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
td.group { vertical-align: top; }
blockquote { margin: 0 0 .25rem; padding: 0 0 0 .8rem; border-left: 3px solid var(--line);
  overflow-wrap: anywhere; }
.said { display: flex; gap: .4rem; align-items: baseline; } .said .tag { flex: none; }
details { margin: .9rem 0 0; } details > :not(summary) { margin-top: .5rem; }
summary { cursor: pointer; color: var(--accent); font-size: .88rem; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--quiet); font-size: .72rem; text-align: center; line-height: 1.3;
  padding-top: .15rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.picture { position: relative; display: block; line-height: 0; border-radius: 4px;
  overflow: hidden; background: var(--soft); }
.picture img { width: 100%; height: auto; display: block; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture.lost { line-height: 1.3; padding: 1.2rem .4rem; text-align: center; font-size: .75rem;
  color: var(--warn); }
.time { position: relative; }
.label { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; margin: .7rem 0 .2rem; }
.strip { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); }
.strip figure { padding: 0 2px; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 1.6rem; }
.pair h3 { margin-bottom: .2rem; }
.grid { display: grid; gap: 0 1rem; align-items: start; }
.key { white-space: nowrap; margin-right: .6rem; display: inline-block; color: var(--quiet); }
.key i { display: inline-block; width: .9rem; border-top: 3px solid; vertical-align: middle;
  margin-right: .25rem; }
.key .d1 { border-top-style: dashed; } .key .d2 { border-top-style: dotted; }
.key .d3 { border-top-style: double; }
.legend { margin: .2rem 0 .7rem; font-size: .8rem; max-width: none; }
svg.chart { display: block; width: 100%; height: auto; overflow: visible; }
svg.chart text { fill: var(--quiet); font-size: 11px; font-variant-numeric: tabular-nums; }
svg.chart .rule { stroke: var(--line); } svg.chart .mark { stroke: var(--quiet);
  stroke-dasharray: 2 3; opacity: .55; } svg.chart .now { stroke: var(--ink); opacity: .55; }
svg.chart .shade { fill: var(--shade); } svg.chart .bar { fill: var(--c0); }
svg.chart .cell { fill: var(--c2); } svg.chart .cell.off { fill: var(--shade); }
svg.spark { display: block; width: 130px; height: 24px; }
svg.spark polyline, path.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
svg.spark .band { fill: var(--c0); opacity: .22; stroke: none; }
.cursor { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--accent);
  pointer-events: none; display: none; } .cursor span { position: absolute; top: -1.2rem;
  transform: translateX(-50%); background: var(--accent); color: var(--card); font-size: .72rem;
  padding: 0 .35rem; border-radius: 4px; white-space: nowrap; }
footer { color: var(--quiet); font-size: .8rem; }
@media (max-width: 60rem) { .frame { display: block; padding: 0 1rem; }
  nav { position: static; max-height: none; padding: 1.2rem 0 0; } main { padding-top: 1.2rem; }
  .pair { display: block; } }
@media print { nav { display: none; } .frame { display: block; } section { break-inside: avoid; } }
"""

_COLOURS = 8
STYLE += "".join(
    f".s{number} {{ stroke: var(--c{number}); }}\n"
    f".key .f{number} {{ border-color: var(--c{number}); }}\n"
    for number in range(_COLOURS)
)

# A line under the pointer through all charts of one time axis.
SCRIPT = """
document.querySelectorAll('.time[data-low]').forEach(function (box) {
  var cursor = document.createElement('div'), text = document.createElement('span');
  cursor.className = 'cursor'; cursor.appendChild(text); box.appendChild(cursor);
  var low = +box.dataset.low, high = +box.dataset.high;
  box.addEventListener('mousemove', function (event) {
    var row = box.querySelector('.strip, svg.chart');
    var area = row.getBoundingClientRect(), outer = box.getBoundingClientRect();
    var part = (event.clientX - area.left) / area.width;
    cursor.style.display = part < 0 || part > 1 ? 'none' : 'block';
    cursor.style.left = event.clientX - outer.left + 'px';
    text.textContent = (low + part * (high - low)).toFixed(2) + ' s';
  });
  box.addEventListener('mouseleave', function () { cursor.style.display = 'none'; });
});
"""
