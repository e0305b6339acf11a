"""BitFit (Ben Zaken et al., 2022): train the biases, freeze the rest."""

from adaptkit import hookimpl


class BitFit:
    """Train only the biases."""

    name = "bitfit"
    lr = 5e-3

    def adapt(self, model):
        return [p for name, p in model.named_parameters() if name.endswith("bias")]


@hookimpl
def adaptkit_strategies():
    return [BitFit]
