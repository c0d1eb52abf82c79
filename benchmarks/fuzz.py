"""Whatever stands in a catalogue, in settings, in a bundle's config.json or a FITS header: a sentence, or it works.

    python benchmarks/fuzz.py [--minutes 10] [--seed 0] [catalogue settings bundle fits]

Hypothesis makes up inputs for each of the four in turn and keeps the smallest that fails. What counts as a failure: an
error that is neither a `ValueError` nor an `OSError` (what the command line turns into a sentence), a message of more
than 2,000 characters, more than 10 s of the processor, or 500 MB of memory. A round of each
has its own seed, from `--seed` on, so a run is repeated by its command. tests/test_fuzz.py runs a short one.
"""
import argparse, csv, io, json, resource, shutil, sys, tempfile, time, warnings
from functools import lru_cache
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np
from zoofast.cli.app import sentence
from zoofast.core.errors import visible
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

SECONDS,MEGABYTES = 10,500     # a wide margin: machines are shared, and what floods takes minutes
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))

def judged(f, *args):
    "Call it: a sentence, or nothing is wrong"
    before,start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,time.process_time()
    try: f(*args)
    except (ValueError, OSError) as e:
        said = visible(sentence(e))                     # as the command line tells it
        assert said.strip(), f"{type(e).__name__} without a word"
        assert len(said)<=3100, f"{len(said)} characters: {said[:300]} ..."
    took = time.process_time()-start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1024
    assert took<=SECONDS, f"{took:.1f} s of the processor"
    assert grown<=MEGABYTES, f"{grown:.0f} MB"

# --- what stands in cells

odd = st.sampled_from(
    ["", " ", "NA", "nan", "-99", "1e999", "-0", "0x1f", "1_000", "٣", "\ufeff", "\u202e", "\x1b[2J", "a\x00b",
     "'", '"', ",", "\n", "::", "|", "a|b", "~", "~x", "..", "/", "file:///x", "s3://b/k",
     "{id_str}", "tile.fits::radec=1,2",
     "::radec=nan,nan", "a.h5::images[1e9]", "9"*400, "é"*3000, "True", "None"])
cell = odd | st.text(max_size=12) | st.integers().map(str) | st.floats().map(str)
names = st.sampled_from(["id_str", "file_loc", "ring", "split", "ra", "dec", "x", "y"]) | cell
tables = st.lists(names, min_size=1, max_size=6).flatmap(
    lambda cols: st.tuples(st.just(cols), st.lists(st.lists(cell, min_size=0, max_size=len(cols)+1), max_size=8)))

def catalogue(table, raw):
    "A csv file, read, checked, split, its task found; also cut short"
    from zoofast.all import check_catalog, read_catalog, split_catalog
    from zoofast.tasks.infer import infer_task
    cols,rows = table
    text = io.StringIO()
    csv.writer(text).writerows([cols, *rows])
    data = text.getvalue().encode("utf-8", "surrogatepass")
    path = FOLDER/"catalogue.csv"
    path.write_bytes(data[:raw] if raw else data)
    df = read_catalog(path)
    label = next((c for c in df.columns if c not in ("id_str", "file_loc")), None)
    check_catalog(df, label, open_images=False, progress=False)
    if label: infer_task(df, label).fit(df)
    split_catalog(df, label)

# --- settings

plain = st.none() | st.booleans() | st.integers() | st.floats() | cell
nested = st.recursive(plain, lambda o: st.lists(o, max_size=4) | st.dictionaries(cell, o, max_size=4), max_leaves=12)
keys = st.sampled_from("method metric parameters early_terminate run_cap program name goal".split())
spec = st.fixed_dictionaries({}, optional=dict(
    value=nested, values=st.lists(nested, max_size=4) | nested, min=plain, max=plain, mu=plain, sigma=plain, q=plain,
    distribution=st.sampled_from("uniform log_uniform_values q_normal constant categorical".split()) | cell))
known = st.sampled_from("learning_rate encoder epochs layer_decay training_mode scheduler_kwargs".split()) | cell
sweeps = st.dictionaries(keys, nested, max_size=5) | st.fixed_dictionaries(dict(
    method=st.sampled_from(["grid", "random", "bayes"]) | plain,
    parameters=st.dictionaries(known, spec | nested, max_size=4),
    metric=st.fixed_dictionaries(dict(name=st.just("accuracy") | cell, goal=st.just("maximize") | plain)) | nested))

def sweep(tree, text):
    "Settings of a search: as a dict, as YAML, and as text that may be none"
    import yaml
    from zoofast.all import read_settings
    path = FOLDER/"settings.yaml"
    try: path.write_text(text or yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    except yaml.YAMLError: return
    read_settings(path)

# --- a bundle's config.json

@lru_cache
def real_bundle():
    "A folder that can be loaded"
    from zoofast.all import Classification, GalaxyModel, ImageReader, create_encoder
    from zoofast.bundles.bundle import write_bundle
    from zoofast.encoders.encoder import GalaxyNet
    net = GalaxyNet(create_encoder("test_convnext", 32, 3, pretrained=False), 2)
    return write_bundle(FOLDER/"bundle", GalaxyModel(net, Classification("ring", ["no", "yes"]), ImageReader(32)))

places = st.lists(st.integers(0, 30), min_size=1, max_size=4)

def bundle(config, where, what, drop):
    "A bundle with one value of its config.json changed or gone, anywhere in the tree"
    from zoofast.all import load_bundle
    tree = json.loads(config)
    at,key = tree,None
    for i in where:
        opts = list(at) if isinstance(at, dict) else list(range(len(at))) if isinstance(at, list) else []
        if not opts: break
        parent,key = at,opts[i%len(opts)]
        at = parent[key]
    if drop: del parent[key]
    else: parent[key] = what
    folder = FOLDER/"changed"
    (folder/"config.json").write_text(json.dumps(tree), encoding="utf-8", errors="surrogatepass")
    load_bundle(folder)

# --- FITS headers

cards = st.sampled_from("""BITPIX NAXIS NAXIS1 NAXIS2 NAXIS3 BSCALE BZERO BLANK CTYPE1 CTYPE2 CTYPE3 CRVAL1 CRPIX1
    CD1_1 CDELT1 EXTNAME EXTVER EXTEND XTENSION PCOUNT GCOUNT BUNIT ZIMAGE ZCMPTYPE ZTILE1 SIMPLE BAND0 FILTER
    STOKES""".split())
value = st.integers(-10**6, 10**12) | st.floats() | st.booleans() | st.sampled_from(
    ["", "'SCI'", "'STOKES'", "'RA---TAN'", "'RICE_1'", "T", "F", "-32", "16", "8", "1E400", "'" + "x"*80,
     "(1.0, 2.0)"])

def fits_file(changed, keep):
    "An image whose header has been written over, also cut short"
    from zoofast.all import ImageReader
    head = dict(SIMPLE="T", BITPIX="-32", NAXIS="2", NAXIS1="40", NAXIS2="40")
    head |= {k: str(v) if not isinstance(v, bool) else "FT"[v] for k,v in changed}
    lines = "".join(f"{k:<8}= {v:>20}"[:80].ljust(80) for k,v in head.items())+"END".ljust(80)
    lines = lines.ljust(-(-len(lines)//2880)*2880)
    data = lines.encode("ascii", "replace")+np.arange(1600, dtype=">f4").tobytes().ljust(8640, b"\0")
    path = FOLDER/"image.fits"
    path.write_bytes(data[:keep] if keep else data)
    ImageReader(32, channels=1)(path)

def tests():
    "Name -> strategies, and what is called with what they make up"
    folder = real_bundle()
    shutil.copytree(folder, FOLDER/"changed", dirs_exist_ok=True)
    config = (folder/"config.json").read_text()
    short = st.none() | st.integers(1, 3000)
    return dict(
        catalogue=((tables, st.none() | st.integers(1, 400)), catalogue),
        settings=((sweeps, st.none() | st.text(max_size=200)), sweep),
        bundle=((places, nested, st.booleans()), lambda *o: bundle(config, *o)),
        fits=((st.lists(st.tuples(cards, value), max_size=5), short), fits_file))

def run(strategies, f, examples, number):
    "Make up so many inputs with this seed; raises what the smallest failing one raises"
    def test(made): judged(f, *made)
    how = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                   phases=[Phase.generate, Phase.shrink], print_blob=False)
    seed(number)(how(given(st.tuples(*strategies))(test)))()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="*", default=["catalogue", "settings", "bundle", "fits"])
    p.add_argument("--minutes", type=float, default=10)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    made,end,number,failed = tests(),time.monotonic()+60*args.minutes,args.seed,[]
    while time.monotonic()<end and len(failed)<20:
        for name in args.what:
            try: run(*made[name], 200, number)
            except Exception as e:
                failed.append((name, number))
                told = [f"{name}, seed {number}: {type(e).__name__}: {str(e)[:500]}", *getattr(e, "__notes__", [])]
                print(*told, sep="\n  ", flush=True)
        number += 1
    n = (number-args.seed)*200*len(args.what)
    print(f"{n} inputs, seeds {args.seed} to {number-1}: {len(failed)} rounds with a failure")
    shutil.rmtree(FOLDER, ignore_errors=True)
    sys.exit(bool(failed))

if __name__=="__main__": main()
