"""How the code fits together, read from the package: the page with its picture, and the site's sidebar

Nothing here is a list of modules. The folders are the floors of the house, their sentences are the folders' own, the
order of modules is that of the notebooks, and who leans on whom is what they import."""
import ast, html, json, re
from dataclasses import dataclass
from pathlib import Path

# The way of a galaxy through the house, from the ground to the roof, and what comes out of each floor
FLOORS = {
    'core':     'sentences: errors, checks, files written whole',
    'catalog':  'a catalogue: one row a galaxy, with its image and what is known about it',
    'encoders': 'a network: a pretrained encoder with a new head',
    'images':   'images: bytes of one or more bands, all of one size',
    'tasks':    'a task: what is asked of a galaxy, and how an answer is scored',
    'data':     'batches: turned, mirrored and shifted galaxies with their targets',
    'training': 'a learner: the network, finetuned on your galaxies',
    'bundles':  'a bundle: the model in a folder, to keep and to share',
    'predict':  'tables: predictions, or features, of every galaxy of a survey',
    'plots':    'pictures of a run and its galaxies',
    'reports':  'one page about a run',
    'sweep':    'the settings that suit your galaxies best',
    '':         'galaxies with known truth, for lessons and tests',
    'cli':      'all of it from a shell',
}
GUIDES = ('rings choosing_parameters freezing_to_full fits votes regression survey similarity from_zoobot from_fastai '
          'tracking sweep').split()

@dataclass
class Page:
    "A notebook, as far as the site's order is concerned"
    path: Path       # Relative to the notebooks' folder
    module: str      # Name of the module it exports (`images.fits`), or nothing
    title: str       # Its heading
    about: str       # The sentence under it
    @property
    def href(self): return (self.path.parent/(re.sub(r'^\d+[a-z]*_', '', self.path.stem)+'.ipynb')).as_posix()
    @property
    def folder(self): return self.module.rpartition('.')[0]

def _text(c): return ''.join(c['source'])

def _page(path, folder):
    "The `Page` of a notebook"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    head = next((_text(c) for c in cells if c['cell_type']=='markdown' and _text(c).startswith('# ')), f'# {path.stem}')
    exp = next((m for c in cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', _text(c), re.M))), None)
    about = (re.findall(r'^> (.*)$', head, re.M) or [''])[0].strip()
    return Page(path.relative_to(folder), exp[1] if exp else '', head.splitlines()[0][2:].strip(), about)

def notebooks(folder):
    "A `Page` for each notebook in `folder`, in the order of the house"
    folder,floors = Path(folder),list(FLOORS)
    found = [p for p in folder.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(folder).parts)]
    pages = [_page(p, folder) for p in sorted(found)]
    def place(p):
        known = p.module and p.folder in floors
        return floors.index(p.folder) if known else len(floors),str(p.path)
    return sorted(pages, key=place)

def by_floor(pages):
    "Folder -> the pages of its modules; raises `ValueError` for a folder that the house does not have"
    res = {name: [] for name in FLOORS}
    for p in pages:
        if not p.module: continue
        if p.folder not in res: raise ValueError(f'{p.path}: tools/codemap.py knows no folder {p.folder!r}')
        res[p.folder].append(p)
    return {k: v for k,v in res.items() if v}

def _targets(node, at):
    "Dotted names inside zoofast that an import statement of the module `at` may load"
    if isinstance(node, ast.Import): return [a.name.removeprefix('zoofast.') for a in node.names]
    if node.level: base = '.'.join([*at.split('.')[:-node.level], *([node.module] if node.module else [])])
    elif (node.module or '').split('.')[0]=='zoofast': base = node.module.removeprefix('zoofast').lstrip('.')
    else: return []
    return [base, *(f'{base}.{a.name}'.lstrip('.') for a in node.names)]

def imports(package):
    "Module -> the modules of the package that it imports, wherever it does"
    package = Path(package)
    files = [p for p in sorted(package.rglob('*.py')) if p.stem[0]!='_']
    paths = {'.'.join(p.relative_to(package).with_suffix('').parts): p for p in files}
    res = {}
    for m,p in paths.items():
        tree = ast.parse(p.read_text(encoding='utf-8'))
        nodes = [o for o in ast.walk(tree) if isinstance(o, (ast.Import, ast.ImportFrom))]
        res[m] = {t for o in nodes for t in _targets(o, m) if t in paths}-{m}
    return res

def sidebar(pages):
    "Contents of the sidebar: where to start, guides, modules by folder, what was measured"
    place = {k: i for i,k in enumerate(GUIDES)}
    guides = [p for p in pages if p.path.parts[0]=='tutorials']
    guides.sort(key=lambda p: (place.get(p.path.stem, len(GUIDES)), p.path.stem))
    def links(**texts): return [dict(text=t.replace('_', ' '), href=h) for t,h in texts.items()]
    def section(name, contents): return dict(section=name, contents=contents)
    def listed(pages): return [dict(text=p.module, href=p.href) for p in pages]
    modules = [section(k or 'simulate', listed(v)) for k,v in by_floor(pages).items()]
    return [
        section('Start', links(zoofast='index.ipynb', What_you_can_type='docs/names.md', How_it_fits_together='code.md',
                               Reading_images='docs/images.md', Which_image_of_a_file='docs/survey_products.md',
                               What_of_fastai_works='docs/fastai.md')),
        section('Guides', [dict(text=p.title, href=p.href) for p in guides]),
        section('Reference', modules),
        section('Measured', links(Speed_and_accuracy='docs/measured.md',
                                  What_the_defaults_are_worth='docs/defaults.md',
                                  Encoders_and_their_blocks='docs/encoders.md')),
        section('Project', links(How_to_contribute='CONTRIBUTING.md', What_changed='CHANGELOG.md'))]

def _box(p, leans, where):
    "A module in the picture"
    on = ' '.join(sorted(o for o in leans.get(p.module, ()) if o in where))
    link,about = p.href.replace('.ipynb', '.html'),html.escape(p.about, quote=True)
    name = p.module.rpartition(".")[2]
    return f'<a href="{link}" data-module="{p.module}" data-leans="{on}" title="{about}">{name}</a>'

def picture(pages, package):
    """The folders from the ground up with their modules, as HTML; a module that is pointed at shows what it leans on,
    and what leans on it"""
    leans,where = imports(package),{p.module: p for p in pages if p.module}
    res = ['<div class="codemap">']
    for k,mods in by_floor(pages).items():
        res.append(f'<div class="stage"><div class="stage-name">{k or "simulate"}</div><div class="modules">')
        res += [_box(p, leans, where) for p in mods]
        res.append(f'</div><div class="gives">{FLOORS[k]}</div></div>')
    return '\n'.join([*res, '</div>'])

def about_folder(package, folder):
    "The sentence of a folder's `__init__.py`"
    if not folder: return 'Galaxies with known truth'
    gate = Path(package)/folder/'__init__.py'
    return ast.get_docstring(ast.parse(gate.read_text(encoding='utf-8'))).splitlines()[0]

INTRO = ('One tower of folders: a galaxy enters as a row of a table and leaves as a prediction, a page or a line on a '
         'screen. A folder imports only folders that stand before it here, a file only earlier files of its own; a '
         'test reads every import to see that it stays so. Under each folder stands what comes out of it. Point at a '
         'module to see which ones it leans on (blue) and which lean on it (orange); its name leads to its page.')
LAST = ('`zoofast` itself and `zoofast.all` offer the names that a user types: `from zoofast.all import *`. '
        'This page is made from the notebooks and the imports of the modules whenever the documentation is built.')

def code_page(pages, package):
    "Markdown of the page that says how the code fits together"
    leans,where = imports(package),{p.module: p for p in pages if p.module}
    order = list(where)
    def link(m): return f'[`{m}`]({where[m].href})'
    def row(p):
        on = sorted((o for o in leans.get(p.module, ()) if o in where), key=order.index)
        about = p.about.replace('|', chr(92)+'|')
        return f"| {link(p.module)} | {about} | {', '.join(map(link, on))} |"
    head = ('---\ntitle: How it fits together\n'
            'description: The way of a galaxy through the folders, '
            'from a row of a catalogue to a row of predictions\n---')
    res = [head, INTRO, f'```{{=html}}\n{picture(pages, package)}\n```']
    for k,mods in by_floor(pages).items():
        table = '| module | | leans on |\n| --- | --- | --- |\n'+'\n'.join(map(row, mods))
        res.append(f'## {k or "simulate"}\n\n{about_folder(package, k)}.\n\n{table}')
    return '\n\n'.join([*res, LAST])+'\n'
