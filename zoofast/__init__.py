"""Finetune pretrained vision encoders on galaxy images, with fastai and timm

Modules:

- `zoofast.bundle`: Save and load a finetuned model as a folder without pickle
- `zoofast.catalog`: A table of galaxies: read, check, split
- `zoofast.checkpoints`: The best model in hand, the whole run on disk
- `zoofast.cli`: The `zoofast` command
- `zoofast.data`: Catalogue and task to fastai `DataLoaders`, with augmentation
- `zoofast.distributed`: Training on several devices, with fastai's `distrib_ctx` and accelerate
- `zoofast.encoders`: A timm encoder and a head; where its weights come from
- `zoofast.freezing`: What is frozen stays as it is, and costs as little as that allows
- `zoofast.groups`: Parameter groups: layer decay, weight decay, freezing, the optimizer
- `zoofast.images`: One image file (jpg, png, tiff, FITS) to one tensor: bands, stretch, size
- `zoofast.learner`: `galaxy_learner`, `fine_tune`
- `zoofast.loop`: A fastai `Learner` whose runs repeat, resume, and end with their best model
- `zoofast.losses`: What training makes small: class weights, label smoothing, focal loss, or a loss of your own
- `zoofast.optimizers`: Any optimizer of torch or timm, by its name
- `zoofast.plots`: Pictures for each question a user asks of a run; every function returns matplotlib Axes
- `zoofast.precision`: Mixed precision where it is faster and safe
- `zoofast.predict`: Catalogue in, table of predictions or representations out
- `zoofast.save`: A learner writes its bundle, its model card and its encoder
- `zoofast.schedules`: Learning-rate schedules: timm's and fastai's, followed by every group
- `zoofast.simulate`: A simulated survey with known truth: images, FITS cubes, a catalogue and volunteer votes
- `zoofast.store`: Images decoded once, kept as bytes
- `zoofast.tasks`: What is predicted: each task knows its outputs, loss, metrics and column names
- `zoofast.terminal`: How the commands behave: options, messages, progress, several processes"""

__version__ = "0.1.0"
