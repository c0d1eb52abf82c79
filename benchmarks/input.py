"""Images a second from file to encoder: reader, cache build, warm cache, augmentation; and the same with the peers.

    python benchmarks/input.py [--peers] [--n 1600] [--size 224] [--batch-size 32] [--rounds 5] [--catalog FILE --label COLUMN]

All rows take turns in one run, `--rounds` times after one that warms up, and medians are compared; files are in the system's page cache. A simulated survey of 256 px jpg and FITS
(cubes of 3 bands and planes of one, float32) is written to a temporary folder, or `--catalog` names a real one. Beside zoofast, each with its own defaults:
- Pillow and fastai: `PILImage`, `Resize`, `ToTensor`, `IntToFloatTensor` in a fastai `DataLoaders`, and Pillow's part of it on one core;
- with `--peers`, galaxy-datasets 0.0.25 (training and validation loaders of its `CatalogDataModule`) and fitsbolt, in an environment of their own in ~/.cache/zoofast-benchmarks,
  made at the first use, which shares torch with this one.
The last rows are what the encoder consumes: EfficientNet-Lite0 with random weights. Results also go to benchmarks/results/input.json.
"""
import argparse, importlib.metadata, json, os, platform, shutil, subprocess, sys, tempfile, time, venv, warnings
from datetime import date
from pathlib import Path
warnings.filterwarnings("ignore")

PEERS = ["galaxy-datasets==0.0.25", "fitsbolt==0.3.1"]
NEEDS = ["datasets>=3.6", "omegaconf", "pytorch-lightning>=2.0", "lightning", "scikit-image", "opencv-python-headless", "dotmap", "tifffile", "requests", "scikit-learn"]

def peers_python():
    "The Python of an environment with the peers, made where there is none; packages of this one are seen from it, so torch is not downloaded again"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")/"zoofast-benchmarks"/f"peers-{sys.version_info[0]}.{sys.version_info[1]}"
    python = folder/"bin"/"python"
    shared = next((folder/"lib").glob("python*/site-packages/shared.pth"), None)
    if not ((folder/"done").exists() and shared and all(Path(o).is_dir() for o in shared.read_text().splitlines())):
        venv.create(folder, with_pip=True, clear=True)
        site = next((folder/"lib").glob("python*/site-packages"))
        (site/"shared.pth").write_text("\n".join(o for o in sys.path if o.endswith("site-packages"))+"\n")
        keep = folder/"constraints.txt"
        keep.write_text("".join(f"{o}=={importlib.metadata.version(o)}\n" for o in ("torch", "torchvision", "numpy", "pandas", "pillow")))
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", keep, *NEEDS], check=True, stdout=sys.stderr)
        subprocess.run([*pip, "--no-deps", *PEERS], check=True, stdout=sys.stderr)
        (folder/"done").touch()
    return python

def until(f, n, seconds=1.0):
    "Calls `f`, which handles `n` images, until `seconds` have passed; images a second"
    start,k = time.perf_counter(),0
    while k==0 or time.perf_counter()-start<seconds: f(); k += 1
    return n*k/(time.perf_counter()-start)

def drain(dl, n):
    "One epoch of a loader's batches"
    got = 0
    for b in dl: got += len(b["id_str"] if isinstance(b, dict) else b[1])
    assert got>=0.7*n, (got, n)
    return got

# The peers, in their environment: the rows that it can do as the first line of the answer, then images a second for each row asked for

def peers(job):
    "Answers on stdout, one json line for each row named on stdin"
    out,sys.stdout = sys.stdout,sys.stderr
    import logging, numpy as np, pandas as pd
    logging.disable(logging.CRITICAL)
    from galaxy_datasets.pytorch.galaxy_datamodule import CatalogDataModule
    from galaxy_datasets.transforms import default_view_config, get_galaxy_transform, minimal_view_config
    import fitsbolt
    jpg,size = job["jpg"],job["size"]
    df = pd.DataFrame(dict(id_str=[str(i) for i in range(len(jpg))], file_loc=jpg, label=np.arange(len(jpg))%2))
    views = [get_galaxy_transform((c := f(), c.__setattr__("output_size", size))[0]) for f in (default_view_config, minimal_view_config)]
    dm = CatalogDataModule(["label"], *views, train_catalog=df, val_catalog=df, test_catalog=df, batch_size=job["batch_size"])
    dm.setup()
    loaders = {"galaxy-datasets, augmented": dm.train_dataloader(), "galaxy-datasets, not augmented": dm.val_dataloader()}
    def bolt(files, workers, **kwargs): fitsbolt.load_and_process_images(files, size=[size, size], n_output_channels=3, num_workers=workers, show_progress=False, **kwargs)
    rows = {k: (lambda dl=dl: until(lambda: drain(dl, len(jpg)), len(jpg))) for k,dl in loaders.items()}
    rows["fitsbolt jpg, one thread"] = lambda: until(lambda: bolt(jpg[:200], 1), min(200, len(jpg)))
    rows["fitsbolt jpg"] = lambda: until(lambda: bolt(jpg, os.cpu_count()), len(jpg))
    for kind,files in job["fits"].items():
        rows[f"fitsbolt FITS {kind}, one thread"] = lambda files=files: until(lambda: bolt(files[:100], 1, fits_extension=0), min(100, len(files)))
        rows[f"fitsbolt FITS {kind}"] = lambda files=files: until(lambda: bolt(files, os.cpu_count(), fits_extension=0), len(files))
    versions = {o.split("==")[0]: importlib.metadata.version(o.split("==")[0]) for o in PEERS}
    print(json.dumps(dict(rows=list(rows), versions=versions)), file=out, flush=True)
    for name in sys.stdin:
        try: got = rows[name.strip()]()
        except Exception as e: got = f"{type(e).__name__}: {e}"          # what a peer cannot read is a result too
        print(json.dumps(got), file=out, flush=True)

# zoofast and fastai, here

def own_rows(df, fits, label, args, tmp):
    "Name -> what gives images a second"
    import numpy as np, torch
    from fastai.vision.all import CategoryBlock, ColReader, ColSplitter, DataBlock, ImageBlock, PILImage, Resize, ToTensor
    from zoofast.bundles.model import each_batch
    from zoofast.data.loaders import GalaxyDataLoaders
    from zoofast.encoders.encoder import GalaxyNet
    from zoofast.encoders.sources import create_encoder
    from zoofast.images.reader import ImageReader
    from zoofast.data.store import ImageStore
    from unittest.mock import patch
    jpg,reader,wide = df.file_loc.tolist(),ImageReader(args.size),ImageReader(args.size, margin=1.2)
    def read(files):
        def rate():
            was = torch.get_num_threads()
            torch.set_num_threads(1)
            try: return until(lambda: [reader(f) for f in files[:200]], min(200, len(files)))
            finally: torch.set_num_threads(was)
        return rate
    def together(files, processes=0, threads=1):
        def rate():
            with patch.dict(os.environ, ZOOFAST_READERS=str(processes)), patch("zoofast.images.parallel.n_threads", lambda: threads):
                return until(lambda: sum(len(x) for x,_ in each_batch(reader, files, args.batch_size, progress=False)), len(files))
        return rate
    def build(files):
        def rate():
            folder = Path(tempfile.mkdtemp(dir=tmp))
            start = time.perf_counter()
            ImageStore(files, wide, folder, progress=False)
            took = time.perf_counter()-start
            shutil.rmtree(folder)
            return len(files)/took
        return rate
    def pillow():
        ready = [Resize(args.size), ToTensor()]
        def one(f):
            im = PILImage.create(f)
            for o in ready: im = o(im, split_idx=1)
        was = torch.get_num_threads()
        torch.set_num_threads(1)
        try: return until(lambda: [one(f) for f in jpg[:200]], min(200, len(jpg)))
        finally: torch.set_num_threads(was)
    rows = {"Pillow + fastai, one thread": pillow, "reader jpg, one thread": read(jpg)}
    for kind,files in fits.items(): rows[f"reader FITS {kind}, one thread"] = read(files)
    n = len(os.sched_getaffinity(0))
    for kind,files in {"jpg": jpg, **{f"FITS {k}": v for k,v in fits.items()}}.items():
        rows |= {f"read_batches {kind}, {k} threads": together(files, threads=k) for k in (n, 2*n)}
        rows[f"read_batches {kind}, {n} processes"] = together(files, n)
    rows["readers started and ended (each, not images)"] = lambda: 4*together(jpg[:1], 4)()
    rows["cache build jpg"] = build(jpg)
    for kind,files in fits.items(): rows[f"cache build FITS {kind}"] = build(files)
    split = df[["id_str", "file_loc", label]].assign(split=np.where(np.arange(len(df))%10, "train", "valid"))
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader("file_loc"), get_y=ColReader(label), splitter=ColSplitter("v"), item_tfms=Resize(args.size))
    fast = block.dataloaders(split.assign(v=split.split=="valid"), bs=args.batch_size, device="cpu")
    rows["Pillow + fastai, not augmented"] = lambda: until(lambda: drain(fast.train, len(fast.train_ds)), len(fast.train)*args.batch_size)
    own = lambda **kwargs: GalaxyDataLoaders.from_catalog(split, label, size=args.size, batch_size=args.batch_size, device="cpu", progress=False, **kwargs)
    for name,dls in (("loader, warm cache, not augmented", own(augment=None)), ("loader, warm cache, augmented", own())):
        rows[name] = lambda dls=dls: until(lambda: drain(dls.train, len(dls.train_ds)), len(dls.train_ds))
    net,x,y = GalaxyNet(create_encoder("tf_efficientnet_lite0", args.size, pretrained=False), 5).to(memory_format=torch.channels_last),torch.rand(args.batch_size, 3, args.size, args.size),torch.arange(args.batch_size)%5
    @torch.no_grad()
    def forward(): net.eval()(x)
    def train():
        net.zero_grad()
        torch.nn.functional.cross_entropy(net.train()(x), y).backward()
    rows["encoder, forward"] = lambda: until(forward, args.batch_size)
    rows["encoder, training"] = lambda: until(train, args.batch_size)
    return rows

def make_data(args, tmp):
    "A catalogue, its FITS files of each kind, and its label"
    import pandas as pd
    from astropy.io import fits
    from zoofast.catalog.read import read_catalog
    from zoofast.simulate import simulate_survey
    if args.catalog:
        df = read_catalog(args.catalog).dropna(subset=[args.label]).head(args.n)
        is_fits = df.file_loc.str.lower().str.contains(r"\.(?:fits?|fts|fz)(?:\.|$)")
        return df[~is_fits].reset_index(drop=True),({"files": df.file_loc[is_fits].tolist()} if is_fits.any() else {}),args.label
    df = simulate_survey(tmp/"survey", n=min(args.n, 400), size=256, progress=False)
    some = pd.concat([df]*-(-args.n//len(df))).head(args.n).reset_index(drop=True)
    some["id_str"] = [f"g{i}" for i in range(len(some))]
    for c in ("file_loc", "fits_loc"):
        (tmp/c).mkdir()
        some[c] = [str(shutil.copy(f, tmp/c/f"{i}{Path(f).suffix}")) for i,f in enumerate(some[c])]
    (tmp/"planes").mkdir()
    planes = [str(tmp/"planes"/f"{i}.fits") for i in range(len(some))]
    for i,f in enumerate(planes):
        if i<len(df): fits.writeto(f, fits.getdata(some.fits_loc[i])[1])
        else: shutil.copy(planes[i%len(df)], f)
    return some,{"cubes": some.fits_loc.tolist(), "planes": planes},"morphology"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peers", action="store_true", help="also galaxy-datasets and fitsbolt")
    p.add_argument("--n", type=int, default=1600)
    p.add_argument("--size", type=int, default=224)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--catalog", type=Path)
    p.add_argument("--label")
    p.add_argument("--out", type=Path, default=Path(__file__).parent/"results"/"input.json")
    p.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.job: return peers(json.loads(args.job.read_text()))
    if args.catalog and not args.label: p.error("--catalog needs --label")
    python = peers_python() if args.peers else None
    import numpy as np, torch
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        os.environ["ZOOFAST_CACHE"] = str(tmp/"cache")
        df,fits,label = make_data(args, tmp)
        names = ("torch", "torchvision", "timm", "fastai", "pillow", "astropy", "numpy", "zoofast")
        versions = {"python": platform.python_version(), **{o: importlib.metadata.version(o) for o in names}}
        rows,child = own_rows(df, fits, label, args, tmp),None
        if python:
            (tmp/"job.json").write_text(json.dumps(dict(jpg=df.file_loc.tolist(), fits=fits, size=args.size, batch_size=args.batch_size)))
            child = subprocess.Popen([python, __file__, "--job", tmp/"job.json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            said = json.loads(child.stdout.readline())
            versions.update(said["versions"])
            def ask(name):
                child.stdin.write(name+"\n"); child.stdin.flush()
                return json.loads(child.stdout.readline())
            rows.update({name: (lambda name=name: ask(name)) for name in said["rows"]})
        took = {name: [] for name in rows}
        for i in range(args.rounds+1):
            for name,rate in rows.items():
                got = rate()
                if i: took[name].append(got)                          # the first round warms up
            print(f"round {i} of {args.rounds}", file=sys.stderr, flush=True)
        if child: child.stdin.close(); child.wait()
    cpu = next((l.split(":")[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in l), "") if Path("/proc/cpuinfo").exists() else platform.processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    failed = {k: v[0] for k,v in took.items() if isinstance(v[0], str)}
    med = {k: float(np.median(v)) for k,v in took.items() if k not in failed}
    base,encoder = med["Pillow + fastai, not augmented"],med["encoder, training"]
    print(f"{cpu}, {cores} cores, {torch.get_num_threads()} torch threads, torch {versions['torch']}; {len(df)} jpgs and {sum(map(len, fits.values()))} FITS, {args.size} px, batches of {args.batch_size}, medians of {args.rounds} rounds")
    print(f"{'':36}{'images/s':>10}  {'/ fastai loader':>15}  {'/ encoder training':>18}  {'/ encoder forward':>17}")
    for k,v in med.items(): print(f"{k:36}{v:10.0f}  {v/base:15.2f}  {v/encoder:18.1f}  {v/med['encoder, forward']:17.1f}")
    for k,v in failed.items(): print(f"{k:36} {v}")
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(dict(date=str(date.today()), cpu=cpu, cores=cores, torch_threads=torch.get_num_threads(), system=platform.system(), versions=versions, jpgs=len(df), fits={k: len(v) for k,v in fits.items()}, data="real" if args.catalog else "simulated",
                                        size=args.size, batch_size=args.batch_size, rounds=args.rounds, images_per_second=med, all_rounds={k: took[k] for k in med}, failed=failed), indent=1)+"\n")

if __name__=="__main__": main()
