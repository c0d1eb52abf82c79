"""Peak memory of training above that of the model alone, for catalogues of several lengths.

    python benchmarks/memory.py [--rows 1000 10000 100000] [--size 96] [--batch-size 64] [--cache auto]

Every row is a file of its own (hard links of 500 simulated galaxies): decoded into a fresh cache, split, and trained on
for one epoch with augmentation and validation, in a process of its own. The model's own memory is the peak after a few
training steps on random images of the same size. The encoder is two convolutions, so that reading is what takes time.
Resident memory as the system counts it: pages of a file that is mapped into memory would be part of it.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, time, warnings
from pathlib import Path

def peak():
    "Peak of resident memory of this process, in MiB"
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform=="darwin" else 2**10)

def small_body():
    "Two convolutions: reading is what takes time"
    from torch import nn
    return nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(),
                         nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())

def few_steps(n_classes, args):
    "Training steps on random images, which is the model's own memory"
    import torch
    from zoofast.encoders.encoder import GalaxyNet
    from zoofast.encoders.sources import create_encoder
    net = GalaxyNet(create_encoder(small_body(), args.size, pretrained=False), n_classes)
    opt = torch.optim.AdamW(net.parameters())
    for _ in range(3):
        out = net(torch.rand(args.batch_size, 3, args.size, args.size))
        torch.nn.functional.cross_entropy(out, torch.zeros(args.batch_size, dtype=torch.long)).backward()
        opt.step()

def one(args, folder):
    "Train on a catalogue of `args.rows[0]` files; prints what it took as json"
    warnings.filterwarnings("ignore")
    import numpy as np, pandas as pd
    from zoofast.catalog.read import read_catalog
    from zoofast.data.loaders import GalaxyDataLoaders
    from zoofast.training.finetune import galaxy_learner
    n,df = args.rows[0],read_catalog(folder/"survey"/"catalog.csv")
    few_steps(df.morphology.nunique(), args)
    own = peak()
    links = folder/"links"
    links.mkdir()
    files = [str(links/f"{i}.jpg") for i in range(n)]
    for i,f in enumerate(files): os.link(df.file_loc[i%len(df)], f)
    labels = df.morphology.to_numpy()[np.arange(n)%len(df)]
    rows = pd.DataFrame(dict(id_str=np.arange(n).astype(str), file_loc=files, morphology=labels))
    start = time.perf_counter()
    cache = None if args.cache=="none" else args.cache
    dls = GalaxyDataLoaders.from_catalog(rows, "morphology", size=args.size, batch_size=args.batch_size, cache=cache,
                                         device="cpu", progress=False)
    read,built = time.perf_counter()-start,peak()
    learn = galaxy_learner(dls, small_body(), layer_decay=1)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    pixels = sum(o.stat().st_size for o in folder.rglob("*.npy"))/2**20
    print(json.dumps(dict(rows=n, own=own, build=built-own, above=peak()-own, pixels=pixels, read=read,
                          train=time.perf_counter()-start-read)))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    p.add_argument("--size", type=int, default=96)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--cache", default="auto", help="auto, disk, memory or none")
    p.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one: return one(args, args.one)
    from zoofast.simulate import simulate_survey
    print("    rows  model alone  above it, MiB: after reading  after training  images decoded, MiB  seconds to read  "
          "to train")
    with tempfile.TemporaryDirectory() as tmp:
        simulate_survey(Path(tmp)/"survey", n=500, size=args.size, fits=False, progress=False)
        for n in args.rows:
            folder = Path(tmp)/str(n)
            folder.mkdir()
            (folder/"survey").symlink_to(Path(tmp)/"survey")
            cmd = [sys.executable, __file__, "--one", str(folder), "--rows", str(n)]
            for k in ("size", "batch_size", "cache"): cmd += [f"--{k.replace('_', '-')}", str(getattr(args, k))]
            env = {**os.environ, "ZOOFAST_CACHE": str(folder/"cache")}
            r = json.loads(subprocess.run(cmd, check=True, capture_output=True, text=True, env=env).stdout)
            print(f"{r['rows']:8} {r['own']:12.0f} {r['build']:29.0f} {r['above']:15.0f} {r['pixels']:20.0f} "
                  f"{r['read']:16.0f} {r['train']:9.0f}", flush=True)
            shutil.rmtree(folder)

if __name__=="__main__": main()
