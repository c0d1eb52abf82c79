"""Which of timm's model families have how many blocks? `python tools/families.py` writes docs/encoders.md

A family is a module of timm and the first words of a name, such as vision_transformer / vit; a small variant stands for
it. Families are read from the timm that is installed. Models are built on torch's meta device: shapes without weights,
so that even the largest cost nothing."""
import re, sys
from pathlib import Path
import timm, torch
from torch.overrides import TorchFunctionMode

root = Path(__file__).resolve().parent.parent
sizes = ('zepto atto femto pico nano micro pwee xxs xxtiny xxsmall xtiny xs xsmall wee dpwee dwee tiny ti mini little '
         'dlittle small s medium m mediumd betwixt base b large l xlarge xl xxl huge h giant giantopt g gigantic '
         'enormous').split()

def _family(name):
    "resnet for resnet50d, vit for vit_small_patch16_224, mobilenetv4_conv for mobilenetv4_conv_small"
    first,*rest = name.split('_')
    first = re.sub(r'(?<!v)\d+[a-z]*$', '', first) or first
    second = re.match(r'(?:[a-z]{3,}(?:v\d)?)?', rest[0])[0] if rest else ''
    return first if not second or second in sizes else f'{first}_{second}'

def _small(name):
    "Sorts variants from small to large by what their names say"
    words = [re.match('[a-z]*', o)[0] for o in name.split('_')]
    size = min((sizes.index(o) for o in words if o in sizes), default=sizes.index('medium'))
    numbers = [int(o) for o in re.findall(r'\d+', name)]
    return size,numbers,len(name),name

def families():
    "`(module, family)` -> a small variant, for all of timm but its test models"
    found = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            if not name.startswith('test_'): found.setdefault((module, _family(name)), []).append(name)
    return {k: min(v, key=_small) for k,v in sorted(found.items())}

def per_module():
    "Module -> the smallest of its families, by name"
    found = families()
    names = lambda module: [n for (m,_),n in found.items() if m==module]
    return {m: min(names(m), key=_small) for m in timm.list_modules() if names(m)}

def build(name):
    "The encoder without a classifier, on the meta device"
    with torch.device('meta'): return timm.create_model(name, num_classes=0).eval()

class _Uses(TorchFunctionMode):
    "Notes which parameters torch's functions are given"
    def __init__(self, body):
        super().__init__()
        self.names,self.order = {id(p): n for n,p in body.named_parameters()},{}

    def _note(self, xs):
        for x in xs:
            if isinstance(x, (list, tuple)): self._note(x)
            elif isinstance(x, torch.nn.Parameter) and id(x) in self.names: self.order.setdefault(self.names[id(x)])

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # a look at its shape is no use
        looks = ('__get__', 'size', 'dim', 'numel', 'stride')
        if func.__name__ not in looks: self._note([*args, *kwargs.values()])
        # slow on meta, same shape
        if func.__name__ in ('batch_norm', 'layer_norm', 'group_norm'):
            return kwargs['input'] if 'input' in kwargs else args[0]
        return func(*args, **kwargs)

def forward_order(body):
    """Names of the parameters in the order in which a forward pass first uses them, and the shape of what it gives for
    one image"""
    size = body.pretrained_cfg['input_size'][-1]
    with torch.no_grad(), _Uses(body) as uses: out = body(torch.zeros(1, 3, size, size, device='meta'))
    return list(uses.order),tuple(out.shape)

def blocks(body):
    "Number of coarse and of fine blocks, or `None` where timm cannot group the model"
    from zoofast.encoders.blocks import find_blocks
    try: return tuple(max(find_blocks(body, o).values())+1 for o in ('coarse', 'fine'))
    except ValueError: return None

head = '''# Encoders

Every family of encoders in timm {timm}, with a small variant as an example. `blocks="coarse"` and `blocks="fine"` are
the choices of `galaxy_learner`: that many groups of parameters, lowest first, learn at rates that decay from block to
block (the head is one more). Where both numbers are equal, timm has no finer grouping. Features are the numbers that
the encoder gives for one image; pixels are what it was made for. Written by `python tools/families.py`;
`tests/test_families.py` checks that the order of the blocks is that of the forward pass. `zoofast encoders PATTERN`
lists all variants.

{n} families in {modules} modules; timm can group {grouped}.

## Families that timm cannot group

timm knows no order of their blocks, so `galaxy_learner` raises an error unless `layer_decay=1` is given, which trains
all of the encoder at one rate: {refused} and their like.

## All families

'''

def main():
    rows,refused = [],[]
    for i,((module, family), name) in enumerate(all_families := list(families().items())):
        print(f'\r{i+1} of {len(all_families)}: {name:60}', end='', file=sys.stderr)
        body = build(name)
        millions = sum(p.numel() for p in body.parameters())/1e6
        pixels,features = body.pretrained_cfg['input_size'][-1],forward_order(body)[1][-1]
        row = [module, family, f'`{name}`', f'{millions:.1f}', pixels, features]
        n = blocks(body)
        if n is None: refused.append(name)
        rows.append([*row, *(n or ('not grouped: `layer_decay=1`', ''))])
    cols = ['module', 'family', 'example', 'parameters (M)', 'pixels', 'features', 'coarse blocks', 'fine blocks']
    line = lambda r: '| '+' | '.join(map(str, r))+' |'
    text = head.format(timm=timm.__version__, n=len(rows), modules=len({r[0] for r in rows}),
                       grouped=len(rows)-len(refused), refused=', '.join(f'`{o}`' for o in refused))
    text += '\n'.join(map(line, [cols, ['---']*len(cols), *rows]))+'\n'
    (root/'docs'/'encoders.md').write_text(text)
    print(f'\rdocs/encoders.md: {len(rows)} families, {len(refused)} not grouped'+' '*40, file=sys.stderr)

if __name__=='__main__':
    sys.path.insert(0, str(root))
    main()
