"""The comparison in Keras that tutorials show: one hidden layer, with and
without BN."""

import os

import numpy as np

from normlab.lab.experiment import Experiment, grid, load


def dense_network(features, method, config, seed):
    """Keras's Flatten, Dense with ReLU, Dense to 10 logits; by `method`
    with batch normalization after the ReLU ("BN"), before it ("BN before
    ReLU") or nowhere ("none"). The same seed gives all three the same
    weights."""
    import keras

    def dense(units, number, activation=None):
        start = keras.initializers.get({
            "class_name": config["initializer"],
            "config": {"seed": 2 * seed + number}})
        return keras.layers.Dense(units, activation, kernel_initializer=start)

    def norm():
        return keras.layers.BatchNormalization(momentum=config["momentum"])

    units = config["units"]
    hidden = {
        "none": lambda: [dense(units, 0, "relu")],
        "BN": lambda: [dense(units, 0, "relu"), norm()],
        "BN before ReLU": lambda: [dense(units, 0), norm(),
                                   keras.layers.ReLU()],
    }[method]()
    return keras.Sequential([keras.Input((features,)), keras.layers.Flatten(),
                             *hidden, dense(10, 1)])


def logits(model, x):
    """The model's outputs (N, 10) for x in inference mode."""
    import keras

    return keras.ops.convert_to_numpy(model(x, training=False))


def cross_entropy(z, y):
    """The mean cross-entropy of logits z (N, 10) and classes y (N,)."""
    z = z.astype(float) - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(y)), y].mean()


def check_backend(name):
    """Choose Keras's backend; RuntimeError if Keras already has another."""
    os.environ.setdefault("KERAS_BACKEND", name)
    import keras

    if keras.config.backend() != name:
        raise RuntimeError(f"this experiment needs Keras on {name}, got "
                           f"{keras.config.backend()}: set the environment "
                           f"variable KERAS_BACKEND={name} and start anew")


def keras_dense(config, point, tick):
    """Train one network with Keras's own `fit`.

    loss and val_loss, one value an epoch, are what `fit` prints.
    train_loss is what `fit` never shows: the loss of training images, as
    many as there are for validation, once the epoch is over and in
    inference mode. val_accuracy goes with it; test_accuracy is taken once,
    at the end.
    """
    check_backend(config["backend"])
    import keras

    x, y, x_test, y_test = load(config["data"])
    cut = int(len(x) * (1 - config["validation_split"]))  # where Keras cuts
    model = dense_network(x.shape[1], point["method"], config, point["seed"])
    model.compile(
        keras.optimizers.Adam(point["lr"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train_loss, val_accuracy, held_out = [], [], len(x) - cut

    def look(epoch, logs):
        z = logits(model, x[-2 * held_out:])  # half of them trained on
        train_loss.append(cross_entropy(z[:held_out],
                                        y[cut - held_out:cut]))
        val_accuracy.append((z[held_out:].argmax(axis=1) == y[cut:]).mean())
        tick(epoch + 1)

    keras.utils.set_random_seed(point["seed"])  # for the order of batches
    result = model.fit(
        x, y, config["batch_size"], config["epochs"], verbose=0,
        validation_split=config["validation_split"],
        validation_batch_size=4000,  # one batch or four: the same loss
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=look)]).history
    result |= {"train_loss": train_loss, "val_accuracy": val_accuracy}
    right = logits(model, x_test).argmax(axis=1) == y_test
    return {name: [round(float(v), 5) for v in values]
            for name, values in result.items()} | {
                "test_accuracy": round(float(right.mean()), 5)}


def points(config):
    """The grid, and the methods of `also` at the first learning rate."""
    also = config | {"methods": config["also"],
                     "learning_rates": config["learning_rates"][:1]}
    return grid(config) + grid(also)


KERAS_DENSE = {
    "methods": ["none", "BN"],
    "also": [],
    "seeds": [0, 1, 2],
    "units": 128,
    "initializer": "GlorotUniform",  # this, the momentum and the batch
    "momentum": 0.99,  # size are Keras's defaults
    "batch_size": 32,
    "epochs": 10,
    "validation_split": 0.2,
    "backend": "torch",
}

EXPERIMENT = Experiment(
    title="Keras tutorials' comparison: a hidden layer of 128 with and "
          "without batch normalization, Adam, ten epochs",
    live=KERAS_DENSE | {
        "data": "digits",
        "learning_rates": [1e-3, 1e-2],
    },
    full=KERAS_DENSE | {
        "data": "mnist",
        "also": ["BN before ReLU"],
        "learning_rates": [1e-3, 3e-4],
    },
    points=points,
    steps=lambda config, point: config["epochs"],
    run=keras_dense,
    code=(dense_network, logits, cross_entropy, keras_dense, grid, points),
    layers=(),
)
