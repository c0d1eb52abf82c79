"""Pretrain a small encoder on simulated galaxies: an encoder without batch normalisation for the benchmarks, where no
hub can be reached.

    python benchmarks/pretrain.py [--encoder convnext_atto] [--n 4000] [--size 64] [--epochs 12]
        [--out models/convnext_atto-simulated]

Six simulated morphologies, random first weights, one cycle. The folder can be given to `galaxy_learner` as
`local-dir:FOLDER`; it is not part of the repository.
"""
import argparse, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch
from zoofast.all import GalaxyDataLoaders, galaxy_learner, simulate_survey

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--encoder", default="convnext_atto")
    p.add_argument("--n", type=int, default=4000)
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--epochs", type=int, default=12)
    p.add_argument("--learning-rate", type=float, default=1e-3)
    p.add_argument("--threads", type=int, default=1)
    models = Path(__file__).resolve().parents[1]/"models"
    p.add_argument("--out", type=Path, default=models/"convnext_atto-simulated")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as tmp:
        start = time.time()
        df = simulate_survey(tmp, n=args.n, size=args.size, fits=False, progress=False)
        print(f"{len(df)} galaxies simulated in {time.time()-start:.0f} s", flush=True)
        dls = GalaxyDataLoaders.from_catalog(df, "morphology", size=args.size, batch_size=64, valid=0.1, progress=False)
        learn = galaxy_learner(dls, args.encoder, pretrained=False, learning_rate=args.learning_rate, layer_decay=1,
                               head_dropout_prob=0., drop_path_rate=0.1)
        start = time.time()
        with learn.no_bar(): learn.fit_one_cycle(args.epochs)
        print(f"{args.epochs} epochs in {time.time()-start:.0f} s")
        learn.save_encoder(args.out)
    print(f"validation {({k: round(v, 3) for k,v in learn.history[-1].items() if isinstance(v, float)})}")

if __name__=="__main__": main()
