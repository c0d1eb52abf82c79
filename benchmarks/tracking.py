"""What keeping track of a run costs: the run's folder and Weights & Biases (offline), as parts of the training time.

    python benchmarks/tracking.py [--encoder tf_efficientnet_lite0] [--size 64] [--n 400] [--batch-size 16] [--rounds 6]

Two learners with the same weights and data train an epoch in turn, one with both callbacks and one with neither; the wall time of their steps is compared (median of
the ratios of neighbouring epochs). On a busy machine that ratio varies by more than what is measured, so the time that is spent inside the callbacks is also summed: its
part of the time of the epochs depends much less on what else runs. Small images make short steps, which is the worst case.
"""
import argparse, os, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, torch
from zoofast.all import *

class Clock(Callback):
    "Wall time of each epoch's steps"
    order = -10
    def before_train(self): self.began = time.perf_counter()
    def after_train(self): self.took = time.perf_counter()-self.began

def timed(cb, events, spent, name):
    "Sum up the time that a callback spends in these events"
    def wrap(f):
        def call(*args):
            began = time.perf_counter()
            try: return f(*args)
            finally: spent[name] = spent.get(name, 0.)+time.perf_counter()-began
        return call
    for e in events: setattr(cb, e, wrap(getattr(cb, e)))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--n", type=int, default=400)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--rounds", type=int, default=6)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        os.environ |= {"ZOOFAST_CACHE": str(tmp/"cache"), **{f"WANDB_{k}_DIR": str(tmp/"wandb") for k in ("CACHE", "DATA", "CONFIG", "ARTIFACT")}}
        df = simulate_survey(tmp/"survey", n=args.n, size=args.size, fits=False, progress=False)
        dls = GalaxyDataLoaders.from_catalog(df, "morphology", size=args.size, batch_size=args.batch_size, progress=False)
        def learner(**kw): return galaxy_learner(dls, args.encoder, keep_best=False, cbs=Clock(), **kw)
        tracked,bare,spent = learner(save_dir=tmp/"run", wandb="offline"),learner(),{}
        tracked.remove_cb(tracked.checkpoints)                        # what a checkpoint costs is another question
        took,ratios,steps = 0.,[],0
        for i in range(args.rounds+1):
            for l in (tracked, bare) if i%2 else (bare, tracked):
                with l.no_bar(), l.no_logging(): l.fit(1)
            if i==0:                                                  # the first round starts wandb and warms up
                timed(tracked.wandb_log, ("after_batch", "before_train", "after_epoch"), spent, "wandb")
                timed(tracked.run_folder, ("after_epoch",), spent, "folder")
                continue
            ratios.append(tracked.clock.took/bare.clock.took)
            took,steps = took+tracked.clock.took,steps+len(dls.train)
        rows = tracked.wandb_log.row
        tracked.wandb_log.finish()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; {args.encoder}, {args.size} px, batches of {args.batch_size}: {steps} steps of {took/steps*1e3:.0f} ms, {rows} records")
        print(f"steps with both over steps with neither: {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        for k,v in spent.items(): print(f"time inside {k}: {v/steps*1e3:.3f} ms a step, {v/took:.2%} of the training time")

if __name__=="__main__": main()
