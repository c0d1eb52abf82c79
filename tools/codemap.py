"""How the code fits together, read from the notebooks: the page with its picture, and the site's sidebar

Nothing here is a list of modules. Their order is that of the notebooks, their sentences are the notebooks' own, and who leans on whom is what they import."""
import ast, html, json, re
from dataclasses import dataclass
from pathlib import Path

# What a galaxy goes through, from top to bottom: the notebooks of each stage by the beginning of their names (the longest that fits counts), and what comes out.
STAGES = [
    ('Catalogues', '00', 'a catalogue: one row a galaxy, with its image and what is known about it'),
    ('Images', '00b 00c 01 03ab', 'images: bytes of red, green and blue, all of one size'),
    ('Questions', '01b 02b 02c 02d 02e 02f 03 03c', 'a task: what is asked of a galaxy, and how an answer is scored'),
    ('Simulated galaxies', '02', 'galaxies with known truth, for lessons and tests'),
    ('Batches', '03b 03d 04', 'batches: turned, mirrored and shifted galaxies with their targets'),
    ('Encoders', '04b 05', 'a network: a pretrained encoder with a new head'),
    ('Training', '00g 06 07 08', 'a learner: the network, finetuned on your galaxies'),
    ('Engines and calibration', '08b 08c 08d', 'honest probabilities, and quicker ways to compute them'),
    ('Bundles', '09', 'a bundle: the model in a folder, to keep and to share'),
    ('Predictions', '09e 10 11', 'tables: predictions, or features, of every galaxy of a survey'),
    ('Similar galaxies', '10c 10d 10e', 'neighbours and maps: which galaxies look alike'),
    ('Pictures and reports', '10f 12 13', 'pictures, and one page about a run'),
    ('Searches', '13b 13c 14', 'the settings that suit your galaxies best'),
    ('Commands', '14b 14c 14d 14e 14f 14g 14h 15', 'all of it from a shell'),
]
GUIDES = 'rings choosing_parameters freezing_to_full fits votes regression survey similarity from_zoobot from_fastai tracking sweep'.split()

@dataclass
class Page:
    "A notebook, as far as the site's order is concerned"
    path: Path       # Relative to the notebooks' folder
    module: str      # Name of the module it exports, or nothing
    title: str       # Its heading
    about: str       # The sentence under it
    @property
    def href(self): return (self.path.parent/(re.sub(r'^\d+[a-z]*_', '', self.path.stem)+'.ipynb')).as_posix()

def _text(c): return ''.join(c['source'])

def notebooks(folder):
    "A `Page` for each notebook in `folder`, in their order"
    res = []
    for p in sorted(Path(folder).rglob('*.ipynb')):
        if any(o[0] in '._' for o in p.relative_to(folder).parts): continue
        cells = json.loads(p.read_text(encoding='utf-8'))['cells']
        head = next((_text(c) for c in cells if c['cell_type']=='markdown' and _text(c).startswith('# ')), f'# {p.stem}')
        exp = next((m for c in cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', _text(c), re.M))), None)
        res.append(Page(p.relative_to(folder), exp[1] if exp else '', head.splitlines()[0][2:].strip(), (re.findall(r'^> (.*)$', head, re.M) or [''])[0].strip()))
    return res

def stage_of(page):
    "The stage of a module's notebook"
    fits = [(len(o), name) for name,starts,_ in STAGES for o in starts.split() if page.path.name.startswith(o)]
    if not fits: raise ValueError(f'{page.path} belongs to no stage: tools/codemap.py knows no number like it')
    return max(fits)[1]

def by_stage(pages):
    "Stage -> the pages of its modules"
    res = {name:[] for name,*_ in STAGES}
    for p in pages:
        if p.module: res[stage_of(p)].append(p)
    return {k:v for k,v in res.items() if v}

def imports(package):
    "Module -> the modules of the package that it imports, wherever it does"
    res = {}
    for p in sorted(Path(package).glob('*.py')):
        got = set()
        for o in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            if isinstance(o, ast.ImportFrom):
                base = (o.module or '') if o.level else (o.module or '').removeprefix('zoofast').lstrip('.') if (o.module or '').split('.')[0]=='zoofast' else None
                if base is not None: got |= {base.split('.')[0]} if base else {a.name for a in o.names}
            elif isinstance(o, ast.Import): got |= {a.name.split('.')[1] for a in o.names if a.name.startswith('zoofast.')}
        res[p.stem] = {o for o in got if (Path(package)/f'{o}.py').exists()}-{p.stem}
    return res

def sidebar(pages):
    "Contents of the sidebar: where to start, guides, modules by stage, what was measured"
    guides = sorted((p for p in pages if p.path.parts[0]=='tutorials'), key=lambda p: (GUIDES.index(p.path.stem) if p.path.stem in GUIDES else len(GUIDES), p.path.stem))
    return [
        dict(section='Start', contents=[dict(text='zoofast', href='index.ipynb'), dict(text='How it fits together', href='code.md'), dict(text='Reading images', href='docs/images.md')]),
        dict(section='Guides', contents=[dict(text=p.title, href=p.href) for p in guides]),
        dict(section='Reference', contents=[dict(section=k, contents=[dict(text=p.module, href=p.href) for p in v]) for k,v in by_stage(pages).items()]),
        dict(section='Measured', contents=[dict(text='Speed and accuracy', href='docs/measured.md'), dict(text='What the defaults are worth', href='docs/defaults.md'), dict(text='Encoders and their blocks', href='docs/encoders.md')]),
        dict(section='Project', contents=[dict(text='How to contribute', href='CONTRIBUTING.md'), dict(text='What changed', href='CHANGELOG.md')])]

def picture(pages, package):
    "The stages from top to bottom with their modules, as HTML that fits any width; a module that is pointed at shows what it leans on, and what leans on it"
    leans,where = imports(package),{p.module:p for p in pages if p.module}
    res = ['<div class="codemap">']
    for k,mods in by_stage(pages).items():
        res.append(f'<div class="stage"><div class="stage-name">{k}</div><div class="modules">')
        for p in mods:
            on = ' '.join(sorted(o for o in leans.get(p.module, ()) if o in where))
            res.append(f'<a href="{p.href.replace(".ipynb", ".html")}" data-module="{p.module}" data-leans="{on}" title="{html.escape(p.about, quote=True)}">{p.module}</a>')
        res.append(f'</div><div class="gives">{dict((a, c) for a,_,c in STAGES)[k]}</div></div>')
    return '\n'.join([*res, '</div>'])

def code_page(pages, package):
    "Markdown of the page that says how the code fits together"
    leans,where = imports(package),{p.module:p for p in pages if p.module}
    def _link(m): return f'[`{m}`]({where[m].href})'
    res = ['---\ntitle: How it fits together\ndescription: The way of a galaxy through the modules, from a row of a catalogue to a row of predictions\n---',
        'Data flows one way, from the top of this picture to the bottom. A module imports only modules whose notebooks come before its own, and a test reads the imports to see that it stays so. '
        'Under each stage stands what comes out of it. Point at a module to see which ones it leans on (blue) and which lean on it (orange); its name leads to its page.',
        f'```{{=html}}\n{picture(pages, package)}\n```']
    for k,mods in by_stage(pages).items():
        res.append(f'## {k}\n\n| module | | leans on |\n| --- | --- | --- |\n'+'\n'.join(
            f"| {_link(p.module)} | {p.about.replace('|', chr(92)+'|')} | {', '.join(_link(o) for o in sorted(leans.get(p.module, ()), key=list(where).index) if o in where) if any(o in where for o in leans.get(p.module, ())) else ''} |" for p in mods))
    res.append('`zoofast.all` gathers them for notebooks: `from zoofast.all import *`. This page is made from the notebooks and the imports of the modules whenever the documentation is built.')
    return '\n\n'.join(res)+'\n'
