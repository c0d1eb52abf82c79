"""Images a second from file to encoder: reader, cache build, warm cache, augmentation; and the same with the peers.

    python benchmarks/input.py [--peers] [--n 1600] [--size 224] [--batch-size 32] [--rounds 5]
        [--catalog FILE --label COLUMN]

All rows take turns in one run, `--rounds` times after one that warms up, and medians are compared; files are in the
system's page cache. A simulated survey of 256 px jpg and FITS (cubes of 3 bands and planes of one, float32) is written
to a temporary folder, or `--catalog` names a real one. Beside zoofast, each with its own defaults:
- Pillow and fastai: `PILImage`, `Resize`, `ToTensor`, `IntToFloatTensor` in a fastai `DataLoaders`, and Pillow's part
  of it on one core;
- with `--peers`, galaxy-datasets 0.0.25 (training and validation loaders of its `CatalogDataModule`) and fitsbolt, in
  an environment of their own in ~/.cache/zoofast-benchmarks, made at the first use, which shares torch with this one.
The last rows are what the encoder consumes: EfficientNet-Lite0 with random weights. Results also go to
benchmarks/results/input.json.
"""
import argparse, importlib.metadata, json, os, platform, shutil, subprocess, sys, tempfile, time, venv, warnings
from datetime import date
from pathlib import Path
warnings.filterwarnings("ignore")

PEERS = ["galaxy-datasets==0.0.25", "fitsbolt==0.3.1"]
NEEDS = ["datasets>=3.6", "omegaconf", "pytorch-lightning>=2.0", "lightning", "scikit-image", "opencv-python-headless",
         "dotmap", "tifffile", "requests", "scikit-learn"]

def peers_python():
    """The Python of an environment with the peers, made where there is none; packages of this one are seen from it, so
    torch is not downloaded again"""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")
    folder = cache/"zoofast-benchmarks"/f"peers-{sys.version_info[0]}.{sys.version_info[1]}"
    python = folder/"bin"/"python"
    shared = next((folder/"lib").glob("python*/site-packages/shared.pth"), None)
    if not ((folder/"done").exists() and shared and all(Path(o).is_dir() for o in shared.read_text().splitlines())):
        venv.create(folder, with_pip=True, clear=True)
        site = next((folder/"lib").glob("python*/site-packages"))
        (site/"shared.pth").write_text("\n".join(o for o in sys.path if o.endswith("site-packages"))+"\n")
        keep = folder/"constraints.txt"
        here = {o: importlib.metadata.version(o) for o in ("torch", "torchvision", "numpy", "pandas", "pillow")}
        keep.write_text("".join(f"{o}=={v}\n" for o,v in here.items()))
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

# The peers, in their environment: the rows that it can do as the first line of the answer, then images a second for
# each row asked for

def peers_rows(job):
    "Name of each row that the peers can do -> what gives its images a second"
    import numpy as np, pandas as pd
    from galaxy_datasets.pytorch.galaxy_datamodule import CatalogDataModule
    from galaxy_datasets.transforms import default_view_config, get_galaxy_transform, minimal_view_config
    import fitsbolt
    jpg,size = job["jpg"],job["size"]
    df = pd.DataFrame(dict(id_str=[str(i) for i in range(len(jpg))], file_loc=jpg, label=np.arange(len(jpg))%2))
    def view(config):
        c = config()
        c.output_size = size
        return get_galaxy_transform(c)
    dm = CatalogDataModule(["label"], view(default_view_config), view(minimal_view_config), train_catalog=df,
                           val_catalog=df, test_catalog=df, batch_size=job["batch_size"])
    dm.setup()
    def drained(dl): return lambda: until(lambda: drain(dl, len(jpg)), len(jpg))
    def bolt(files, workers, **kwargs):
        def load():
            fitsbolt.load_and_process_images(files, size=[size, size], n_output_channels=3, num_workers=workers,
                                             show_progress=False, **kwargs)
        return lambda: until(load, len(files))
    rows = {
        "galaxy-datasets, augmented": drained(dm.train_dataloader()),
        "galaxy-datasets, not augmented": drained(dm.val_dataloader()),
        "fitsbolt jpg, one thread": bolt(jpg[:200], 1),
        "fitsbolt jpg": bolt(jpg, os.cpu_count())}
    for kind,files in job["fits"].items():
        rows[f"fitsbolt FITS {kind}, one thread"] = bolt(files[:100], 1, fits_extension=0)
        rows[f"fitsbolt FITS {kind}"] = bolt(files, os.cpu_count(), fits_extension=0)
    return rows

def peers(job):
    "Answers on stdout, one json line for each row named on stdin"
    out,sys.stdout = sys.stdout,sys.stderr
    import logging
    logging.disable(logging.CRITICAL)
    rows = peers_rows(job)
    versions = {o.split("==")[0]: importlib.metadata.version(o.split("==")[0]) for o in PEERS}
    print(json.dumps(dict(rows=list(rows), versions=versions)), file=out, flush=True)
    for name in sys.stdin:
        try: got = rows[name.strip()]()
        except Exception as e: got = f"{type(e).__name__}: {e}"          # what a peer cannot read is a result too
        print(json.dumps(got), file=out, flush=True)

# zoofast and fastai, here

def one_thread(f):
    "What `f` gives while torch has one thread"
    import torch
    def rate():
        was = torch.get_num_threads()
        torch.set_num_threads(1)
        try: return f()
        finally: torch.set_num_threads(was)
    return rate

def one_thread_rows(jpg, fits, reader, args):
    "Files to pixels, by Pillow and fastai and by the reader"
    from fastai.vision.all import PILImage, Resize, ToTensor
    def read(files): return one_thread(lambda: until(lambda: [reader(f) for f in files[:200]], min(200, len(files))))
    def pillow():
        ready = [Resize(args.size), ToTensor()]
        def one(f):
            im = PILImage.create(f)
            for o in ready: im = o(im, split_idx=1)
        return until(lambda: [one(f) for f in jpg[:200]], min(200, len(jpg)))
    rows = {"Pillow + fastai, one thread": one_thread(pillow), "reader jpg, one thread": read(jpg)}
    return rows | {f"reader FITS {kind}, one thread": read(files) for kind,files in fits.items()}

def together_rows(jpg, fits, reader, args):
    "Files to pixels, by all threads or processes"
    from unittest.mock import patch
    from zoofast.bundles.model import each_batch
    def together(files, processes=0, threads=1):
        def read_all(): return sum(len(x) for x,_ in each_batch(reader, files, args.batch_size, progress=False))
        def rate():
            with (patch.dict(os.environ, ZOOFAST_READERS=str(processes)),
                  patch("zoofast.images.parallel.n_threads", lambda: threads)):
                return until(read_all, len(files))
        return rate
    rows,n = {},len(os.sched_getaffinity(0))
    for kind,files in {"jpg": jpg, **{f"FITS {k}": v for k,v in fits.items()}}.items():
        rows |= {f"read_batches {kind}, {k} threads": together(files, threads=k) for k in (n, 2*n)}
        rows[f"read_batches {kind}, {n} processes"] = together(files, n)
    rows["readers started and ended (each, not images)"] = lambda: 4*together(jpg[:1], 4)()
    return rows

def cache_rows(jpg, fits, args, tmp):
    "Files to decoded images on the disk"
    from zoofast.data.store import ImageStore
    from zoofast.images.reader import ImageReader
    wide = ImageReader(args.size, margin=1.2)
    def build(files):
        def rate():
            folder = Path(tempfile.mkdtemp(dir=tmp))
            start = time.perf_counter()
            ImageStore(files, wide, folder, progress=False)
            took = time.perf_counter()-start
            shutil.rmtree(folder)
            return len(files)/took
        return rate
    return {"cache build jpg": build(jpg), **{f"cache build FITS {kind}": build(files) for kind,files in fits.items()}}

def loader_rows(df, label, args):
    "Batches for training: fastai's, and zoofast's from a warm cache"
    import numpy as np
    from fastai.vision.all import CategoryBlock, ColReader, ColSplitter, DataBlock, ImageBlock, Resize
    from zoofast.data.loaders import GalaxyDataLoaders
    split = df[["id_str", "file_loc", label]].assign(split=np.where(np.arange(len(df))%10, "train", "valid"))
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader("file_loc"), get_y=ColReader(label),
                      splitter=ColSplitter("v"), item_tfms=Resize(args.size))
    fast = block.dataloaders(split.assign(v=split.split=="valid"), bs=args.batch_size, device="cpu")
    def fastai(): return until(lambda: drain(fast.train, len(fast.train_ds)), len(fast.train)*args.batch_size)
    def own(**kwargs):
        dls = GalaxyDataLoaders.from_catalog(split, label, size=args.size, batch_size=args.batch_size, device="cpu",
                                             progress=False, **kwargs)
        return lambda: until(lambda: drain(dls.train, len(dls.train_ds)), len(dls.train_ds))
    return {
        "Pillow + fastai, not augmented": fastai,
        "loader, warm cache, not augmented": own(augment=None),
        "loader, warm cache, augmented": own()}

def encoder_rows(args):
    "What the encoder consumes"
    import torch
    from zoofast.encoders.encoder import GalaxyNet
    from zoofast.encoders.sources import create_encoder
    net = GalaxyNet(create_encoder("tf_efficientnet_lite0", args.size, pretrained=False), 5)
    net = net.to(memory_format=torch.channels_last)
    x,y = torch.rand(args.batch_size, 3, args.size, args.size),torch.arange(args.batch_size)%5
    @torch.no_grad()
    def forward(): net.eval()(x)
    def train():
        net.zero_grad()
        torch.nn.functional.cross_entropy(net.train()(x), y).backward()
    return {
        "encoder, forward": lambda: until(forward, args.batch_size),
        "encoder, training": lambda: until(train, args.batch_size)}

def own_rows(df, fits, label, args, tmp):
    "Name -> what gives images a second"
    from zoofast.images.reader import ImageReader
    jpg,reader = df.file_loc.tolist(),ImageReader(args.size)
    rows = one_thread_rows(jpg, fits, reader, args) | together_rows(jpg, fits, reader, args)
    return rows | cache_rows(jpg, fits, args, tmp) | loader_rows(df, label, args) | encoder_rows(args)

def make_data(args, tmp):
    "A catalogue, its FITS files of each kind, and its label"
    import pandas as pd
    from astropy.io import fits
    from zoofast.catalog.read import read_catalog
    from zoofast.simulate import simulate_survey
    if args.catalog:
        df = read_catalog(args.catalog).dropna(subset=[args.label]).head(args.n)
        is_fits = df.file_loc.str.lower().str.contains(r"\.(?:fits?|fts|fz)(?:\.|$)")
        files = {"files": df.file_loc[is_fits].tolist()} if is_fits.any() else {}
        return df[~is_fits].reset_index(drop=True),files,args.label
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

class PeersProcess:
    "The peers in a process of their own, which answers each row that it is asked for"
    def __init__(self, python, job, file):
        file.write_text(json.dumps(job))
        command = [python, __file__, "--job", file]
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        said = json.loads(self.p.stdout.readline())
        self.versions = said["versions"]
        self.rows = {name: (lambda name=name: self.ask(name)) for name in said["rows"]}
    def ask(self, name):
        self.p.stdin.write(name+"\n"); self.p.stdin.flush()
        return json.loads(self.p.stdout.readline())
    def close(self): self.p.stdin.close(); self.p.wait()

def take_turns(rows, rounds):
    "Call each row in turn, `rounds` times after one that warms up; what each gave"
    took = {name: [] for name in rows}
    for i in range(rounds+1):
        for name,rate in rows.items():
            got = rate()
            if i: took[name].append(got)                          # the first round warms up
        print(f"round {i} of {rounds}", file=sys.stderr, flush=True)
    return took

def machine():
    "The CPU's name, and the cores that this process may use"
    info = Path("/proc/cpuinfo")
    cpu = platform.processor()
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((l.split(":")[1].strip() for l in lines if "model name" in l), "")
    return cpu,len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

def show(med, failed):
    "The table: images a second, and how many times those of other rows"
    base = med["Pillow + fastai, not augmented"]
    training,forward = med["encoder, training"],med["encoder, forward"]
    print(f"{'':36}{'images/s':>10}  {'/ fastai loader':>15}  {'/ encoder training':>18}  {'/ encoder forward':>17}")
    for k,v in med.items(): print(f"{k:36}{v:10.0f}  {v/base:15.2f}  {v/training:18.1f}  {v/forward:17.1f}")
    for k,v in failed.items(): print(f"{k:36} {v}")

def report(args, n_jpgs, fits, versions, took):
    "Print the medians, and write them with the machine and the versions that they are of"
    import numpy as np, torch
    cpu,cores = machine()
    failed = {k: v[0] for k,v in took.items() if isinstance(v[0], str)}
    med = {k: float(np.median(v)) for k,v in took.items() if k not in failed}
    print(f"{cpu}, {cores} cores, {torch.get_num_threads()} torch threads, torch {versions['torch']}; "
          f"{n_jpgs} jpgs and {sum(map(len, fits.values()))} FITS, {args.size} px, batches of {args.batch_size}, "
          f"medians of {args.rounds} rounds")
    show(med, failed)
    result = dict(
        date=str(date.today()), cpu=cpu, cores=cores, torch_threads=torch.get_num_threads(), system=platform.system(),
        versions=versions, jpgs=n_jpgs, fits={k: len(v) for k,v in fits.items()},
        data="real" if args.catalog else "simulated",
        size=args.size, batch_size=args.batch_size, rounds=args.rounds,
        images_per_second=med, all_rounds={k: took[k] for k in med}, failed=failed)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1)+"\n")

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
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        os.environ["ZOOFAST_CACHE"] = str(tmp/"cache")
        df,fits,label = make_data(args, tmp)
        names = ("torch", "torchvision", "timm", "fastai", "pillow", "astropy", "numpy", "zoofast")
        versions = {"python": platform.python_version(), **{o: importlib.metadata.version(o) for o in names}}
        rows,child = own_rows(df, fits, label, args, tmp),None
        if python:
            job = dict(jpg=df.file_loc.tolist(), fits=fits, size=args.size, batch_size=args.batch_size)
            child = PeersProcess(python, job, tmp/"job.json")
            versions.update(child.versions)
            rows.update(child.rows)
        took = take_turns(rows, args.rounds)
        if child: child.close()
    report(args, len(df), fits, versions, took)

if __name__=="__main__": main()
