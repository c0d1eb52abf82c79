"""256 steps after the stretch, or float16: does a model see more, and what does it cost?

    python benchmarks/depth.py [--data ../shared/data/mirabest] [--size 48] [--seeds 3] [--epochs 4]

`tails`: simulated galaxies with a bright core, half of which have a tidal tail, of a brightness that is a part of the
core's; noise is far below one step of 256, as in a deep stack, so that depth is what decides. `mirabest`: 120 radio
galaxies of FIRST, float32 FITS. Both by `ImageReader(dtype=...)` in turns: the same galaxies, split and seed, for each
stretch. Validation accuracy and ROC AUC of the last epoch. Then the bytes of the cache, and the rate of reading, in
turns.
"""
import argparse, json, os, platform, tempfile, time, warnings
warnings.filterwarnings("ignore")
from datetime import date
from pathlib import Path
import numpy as np, pandas as pd, timm, torch
from astropy.io import fits
from zoofast.data.loaders import GalaxyDataLoaders
from zoofast.data.store import ImageStore
from zoofast.images.reader import ImageReader
from zoofast.training.finetune import galaxy_learner

FIXED = dict(low=-0.002, high=1.)          # one scale for the survey, which keeps the cores

def galaxy(rng, size, tail, noise):
    "Flux of a galaxy whose core is about 1, with a curved tail of this brightness, 0 for none; noise of a deep stack"
    y,x = np.mgrid[:size,:size]-size/2+rng.normal(0, 1, (2, 1, 1))
    angle,q = rng.uniform(0, 2*np.pi),rng.uniform(.5, 1)
    u,v = x*np.cos(angle)+y*np.sin(angle),(y*np.cos(angle)-x*np.sin(angle))/q
    core = rng.uniform(.7, 1)*np.exp(-np.hypot(u, v)/rng.uniform(1.2, 2.))
    turn,side = rng.uniform(0, 2*np.pi),rng.choice((-1, 1))
    along = (side*(np.arctan2(y, x)-turn))%(2*np.pi)                 # 0 where the tail begins
    r,at = np.hypot(x, y),size*(.18+.08*along)
    arm = np.exp(-((r-at)/(size*.04))**2)*((along>.3)&(along<2.6))
    return (core + tail*arm + rng.normal(0, noise, r.shape)).astype(np.float32)

def survey(folder, n, size, tail, noise, seed):
    "A catalogue of FITS, half of which have a tail"
    rng,rows = np.random.default_rng(seed),[]
    for i in range(n):
        path = folder/f"{i}.fits"
        fits.writeto(path, galaxy(rng, size, tail*(i%2), noise))
        rows.append(dict(id_str=f"g{i}", file_loc=str(path), tail=("no", "yes")[i%2]))
    return pd.DataFrame(rows)

def scores(df, label, reader, args, seed):
    "Accuracy and ROC AUC on the validation galaxies after the last epoch"
    dls = GalaxyDataLoaders.from_catalog(df, label, reader=reader, valid=0.3, seed=seed, cache="memory", progress=False)
    learn = galaxy_learner(dls, args.encoder, seed=seed, learning_rate=args.rate)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs, freeze_epochs=1)
    last = pd.DataFrame(learn.history).iloc[-1]
    return float(last["accuracy"]),float(last["roc_auc"])

def compare(name, df, label, channels, stretches, args, **about):
    "A row for each stretch and depth; depths take turns"
    rows = []
    for called,stretch in stretches.items():
        got = {"uint8": [], "float16": []}
        for seed in range(args.seeds):
            for dtype in list(got)[::1 if seed%2 else -1]:
                got[dtype].append(scores(df, label, ImageReader(args.size, channels, stretch, dtype=dtype), args, seed))
        for dtype,o in got.items():
            acc,auc = np.array(o).T
            rows.append(dict(data=name, stretch=called, dtype=dtype, accuracy=acc.round(3).tolist(),
                             roc_auc=auc.round(3).tolist(), **about))
            print(f"{name:24} {called:10} {dtype:8} accuracy {acc.mean():.3f} ({acc.min():.3f} to {acc.max():.3f})   "
                  f"ROC AUC {auc.mean():.3f} ({auc.min():.3f} to {auc.max():.3f})", flush=True)
    return rows

def cost(df, args, rounds=5):
    "Bytes of the cache, and images a second of one thread: medians of rounds in turns"
    files,rates,size = list(df.file_loc)*2,{"uint8": [], "float16": []},{}
    readers = {d: ImageReader(args.size, 3, dtype=d) for d in rates}
    for d,r in readers.items():
        store = ImageStore(files, r, "memory", progress=False)
        size[d] = store.pixels.numel()*store.pixels.element_size()
    for i in range(rounds):
        for d in list(rates)[::1 if i%2 else -1]:
            start = time.perf_counter()
            for f in files: readers[d](f)
            rates[d].append(len(files)/(time.perf_counter()-start))
    rate = {d: float(np.median(v)) for d,v in rates.items()}
    ratios = [b/a for a,b in zip(rates["uint8"], rates["float16"])]
    print(f"cache: {size['float16']/size['uint8']:.2f} times the bytes; reading: {rate['float16']/rate['uint8']:.2f} "
          f"times the rate ({min(ratios):.2f} to {max(ratios):.2f}); {rate['uint8']:.0f} and {rate['float16']:.0f} "
          "images a second", flush=True)
    return dict(cache_bytes=size, images_a_second=rate, ratios=[round(o, 3) for o in ratios])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path(os.environ.get("ZOOFAST_DATA") or "../shared/data")/"mirabest")
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--size", type=int, default=48)
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--rate", type=float, default=5e-4)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--galaxies", type=int, default=160)
    p.add_argument("--tails", type=float, nargs="+", default=[1e-3, 8e-3], help="brightness, where the core's is 1")
    p.add_argument("--noise", type=float, default=2e-4, help="of a pixel, where the core's brightness is 1")
    p.add_argument("--out", type=Path, default=Path(__file__).parent/"results"/"depth.json")
    args = p.parse_args()
    rows = []
    stretches = {"linear": dict(kind="linear", **FIXED), "asinh": dict(kind="asinh", **FIXED), "auto": "auto",
                 "midtones": "midtones"}
    with tempfile.TemporaryDirectory() as tmp:
        for tail in args.tails:
            folder = Path(tmp)/f"{tail}"
            folder.mkdir()
            df = survey(folder, args.galaxies, args.size, tail, args.noise, seed=7)
            rows += compare(f"tails {tail:g}", df, "tail", 1, stretches, args, tail=tail, noise=args.noise)
        about = cost(df, args)
    if (args.data/"labels.csv").is_file():
        df = pd.read_csv(args.data/"labels.csv")
        df = df.assign(id_str=df.file_loc, file_loc=[str((args.data/f).resolve()) for f in df.file_loc])
        print(f"mirabest: {len(df)} FITS of {fits.getdata(df.file_loc[0]).dtype}")
        rows += compare("mirabest", df, "label", 1, {o: o for o in ("auto", "linear", "midtones")}, args)
    device = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    settings = {k: v for k,v in vars(args).items() if k not in ("data", "out")}
    result = dict(date=str(date.today()), device=device, torch=torch.__version__, timm=timm.__version__, **settings,
                  cost=about, rows=rows)
    args.out.write_text(json.dumps(result, indent=1)+"\n")

if __name__=="__main__": main()
