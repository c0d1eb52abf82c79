"""Galaxies cut from a survey's tiles: what that costs beside ready-made cutouts, and that the answers are the same.

    python benchmarks/tiles.py [--n 2000] [--grid 4 3] [--size 4000] [--rounds 3] [--compress] [--keep FOLDER]

A simulated survey of overlapping tiles in three bands, z with pixels twice as large, and a catalogue of positions is
written to a temporary folder; and beside it a FITS cutout of each galaxy, a cube of three bands. A process of its own
reads each: check, first epoch (check, decoding and one epoch of EfficientNet-Lite0 with random weights, no cache),
prediction. They take turns, `--rounds` times; printed are medians of the tiles' time over the cutouts', of the clock
and of the processor. Then:
- predictions from positions against predictions of cutouts that astropy's `Cutout2D` made (bands of one pixel scale,
  the tile's own pixels) and that `reproject` made (all three bands), by one model;
- the largest memory of a process that reads 100 galaxies, from tiles of half the side, of this, and of twice this;
- how long `find_tiles` needs for 3,000 tiles and 200,000 positions.
Results also go to benchmarks/results/tiles.json.
"""
import argparse, json, os, platform, statistics, subprocess, sys, tempfile
from datetime import date
from pathlib import Path
from rounds import Worker

HEAD = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from zoofast.all import *
import torch
folder,size = Path(sys.argv[1]),int(sys.argv[2])
torch.set_num_threads(int(sys.argv[3]))
tiles = {b: str(folder/"tiles"/f"*_{b}.fits*") for b in "grz"}
cuts = ImageReader(size, cutout="25 arcsec", stretch={"kind": "asinh", "low": 0, "high": 1})
"""
WORK = HEAD + """
in_tiles = sys.argv[4]=="tiles"
reader = cuts if in_tiles else ImageReader(size, stretch=cuts.stretch)
if in_tiles: where = dict(catalog=folder/"catalog.csv", tiles=tiles)
else: where = dict(catalog=folder/"cutouts.csv")
def rows(): return read_catalog(where["catalog"], tiles=where.get("tiles"))
def check(): assert not len(check_catalog(rows(), "morphology", open_images=reader).bad)
def epoch():
    how = dict(label_cols="morphology", reader=reader, cache="memory", progress=False)
    dls = GalaxyDataLoaders.from_catalog(**where, **how)
    learn = galaxy_learner(dls, "tf_efficientnet_lite0", pretrained=False, precision="fp32")
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.save_bundle(folder/f"bundle_{sys.argv[4]}")
def predict(): predict_catalog(folder/f"bundle_{sys.argv[4]}", **where, engine="torch", progress=False)
print("ready", flush=True)
for line in sys.stdin:
    wall,cpu = time.perf_counter(),time.process_time()
    dict(check=check, epoch=epoch, predict=predict)[line.strip()]()
    print(json.dumps([time.perf_counter()-wall, time.process_time()-cpu]), flush=True)
"""
READY = HEAD + """
from astropy.io import fits
df = read_catalog(folder/"catalog.csv", tiles=tiles)
(folder/"cutouts").mkdir()
for i,o in zip(df.id_str, df.file_loc): fits.writeto(folder/"cutouts"/f"{i}.fits", cuts.flux(o)[:,::-1].astype("f4"))
df.assign(file_loc=[f"cutouts/{i}.fits" for i in df.id_str]).to_csv(folder/"cutouts.csv", index=False)
"""
SAME = HEAD + """
from dataclasses import replace
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS
from reproject import reproject_interp
n = int(sys.argv[4])
df = read_catalog(folder/"catalog.csv", tiles=tiles)[:n]
model = load_bundle(folder/"bundle_tiles")
def grid(ra, dec, scale, side):
    w = WCS(naxis=2)
    w.wcs.ctype,w.wcs.crval,w.wcs.crpix = ["RA---TAN", "DEC--TAN"],[ra, dec],[(side+1)/2]*2
    w.wcs.cdelt = [-scale/3600, scale/3600]
    return w
opened = {}
def image(path):
    if path not in opened:
        with fits.open(path) as f: h = next(o for o in f if o.data is not None); opened[path] = h.data, WCS(h.header)
    return opened[path]
def by_astropy(ra, dec, paths, side):
    at = SkyCoord(ra, dec, unit="deg")
    def cut(data, wcs): return Cutout2D(data, at, side, wcs, "partial", np.nan)
    first = [cut(*image(p)) for p in paths[:2]]
    data,wcs = image(paths[2])
    z = reproject_interp((data, wcs), first[0].wcs, shape_out=(side, side), return_footprint=False)
    return np.stack([*(o.data for o in first), z])
side = round(25/.26171875)
made = folder/"by_astropy"
made.mkdir()
files = []
for row in df.itertuples():
    paths = [o.split("::")[0] for o in row.file_loc.split("|")]
    files.append(str(made/f"{row.id_str}.fits"))
    fits.writeto(files[-1], by_astropy(row.ra, row.dec, paths, side).astype("f4"))
ours = predict_catalog(model, df, engine="torch", progress=False)
model.reader = replace(model.reader, cutout=None)
theirs = predict_catalog(model, df.assign(file_loc=files), engine="torch", progress=False)
cols = [c for c in ours if c.startswith("morphology_") and c!="morphology_pred"]
p,q = (o[cols].to_numpy(float) for o in (ours, theirs))
print(json.dumps(dict(galaxies=len(p), spread=float(p.std(0).max()), largest_difference=float(abs(p-q).max()),
                      same_class=int((ours.morphology_pred==theirs.morphology_pred).sum()))))
"""
MEMORY = HEAD + """
import resource
df = read_catalog(folder/"catalog.csv", tiles=tiles)[:100]
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
for o in df.file_loc: cuts(o)
print(json.dumps([base, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024]))
"""
FIND = HEAD + """
from astropy.io import fits
from astropy.wcs import WCS
from zoofast.catalog.tiles import find_tiles
many = folder/"many"
many.mkdir()
for i in range(3000):
    w = WCS(naxis=2)
    w.wcs.ctype,w.wcs.crval,w.wcs.crpix = ["RA---TAN", "DEC--TAN"],[150+.25*(i%60), 2+.25*(i//60)],[32.5]*2
    w.wcs.cdelt = [-.27/64, .27/64]
    head = w.to_header()
    head.update({f"KEY{k}": (k, "as the headers of surveys have") for k in range(100)})
    fits.writeto(many/f"t{i}.fits", np.zeros((64, 64), np.float32), head)
rng = np.random.default_rng(0)
df = pd.DataFrame(dict(ra=150+rng.uniform(0, 14.5, 200_000), dec=2+rng.uniform(0, 12, 200_000)))
start,cpu = time.perf_counter(),time.process_time()
found = find_tiles(df, str(many/"*.fits"))
print(json.dumps([time.perf_counter()-start, time.process_time()-cpu, sum(not o.startswith("::") for o in found)]))
"""

def run(code, folder, args, *more, threads=None):
    "The last line that the code prints, read as JSON"
    env = {**os.environ, "ZOOFAST_CACHE": str(folder/"cache")}
    words = [sys.executable, "-c", code, str(folder), str(args.pixels), str(threads or os.cpu_count()), *map(str, more)]
    said = subprocess.run(words, env=env, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(said.stdout.splitlines()[-1]) if said.stdout.strip() else None

def compare(folder, args):
    "Median of the tiles' times over the cutouts', of the clock and the processor, for each kind of work"
    def one(kind):
        return Worker(WORK, folder, args.pixels, os.cpu_count(), kind, ZOOFAST_CACHE=str(folder/f"cache_{kind}"))
    workers = [one(kind) for kind in ("tiles", "cutouts")]
    rows = ["check", "epoch", "predict"]
    found = {row: [] for row in rows}
    for i in range(args.rounds+1):
        for row in rows:
            took = {w: w.run(row) for w in (workers if i%2 else workers[::-1])}
            if i: found[row].append([took[w] for w in workers])         # the first round warms up
    for w in workers: w.close()
    def ratio(times, j): return round(statistics.median(t[0][j]/t[1][j] for t in times), 3)
    return {row: dict(wall=ratio(t, 0), cpu=ratio(t, 1)) for row,t in found.items()}

def memory(args):
    "MiB before and after 100 galaxies were read, for three sizes of tiles"
    from zoofast.simulate import simulate_tiles
    out = {}
    for size in (args.size//2, args.size, args.size*2):
        with tempfile.TemporaryDirectory() as tmp:
            simulate_tiles(tmp, n=100, grid=(1, 1), size=size, seed=1, compress=args.compress, progress=False)
            base,most = run(MEMORY, Path(tmp), args)
        out[size] = dict(before=round(base), largest=round(most))
    return out

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=2000)
    p.add_argument("--grid", type=int, nargs=2, default=(4, 3))
    p.add_argument("--size", type=int, default=4000)
    p.add_argument("--pixels", type=int, default=96)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--compress", action="store_true")
    p.add_argument("--keep", type=Path, help="folder for the survey, kept")
    args = p.parse_args()
    from zoofast.simulate import simulate_tiles
    with tempfile.TemporaryDirectory() as tmp:
        folder = (args.keep or Path(tmp)).absolute()
        simulate_tiles(folder, args.n, tuple(args.grid), args.size, seed=0, compress=args.compress)
        run(READY, folder, args)
        times = compare(folder, args)
        for row,o in times.items():
            print(f"{row:>8}: tiles over cutouts, clock {o['wall']:.2f} processor {o['cpu']:.2f}")
        same = run(SAME, folder, args, min(args.n, 400))
        print(f"predictions beside those of astropy's cutouts: {same}")
        wall,cpu,inside = run(FIND, folder, args)
        print(f"3,000 tiles and 200,000 positions: {wall:.1f} s ({cpu:.1f} s of the processor), {inside} found")
    most = memory(args)
    for size,o in most.items(): print(f"tiles of {size} px: {o['before']} MiB before, {o['largest']} MiB at most")
    about = dict(date=str(date.today()), cpus=os.cpu_count(), machine=platform.processor() or platform.machine(),
                 **{k: v for k,v in vars(args).items() if k!="keep"})
    found = dict(about=about, times=times, same=same, find=dict(seconds=round(wall, 1), inside=inside), memory=most)
    out = Path(__file__).resolve().parent/"results"/f"tiles{'_compressed' if args.compress else ''}.json"
    out.write_text(json.dumps(found, indent=1)+"\n")

if __name__=="__main__": main()
