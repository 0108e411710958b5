"""An LSTM writes Shakespeare, character by character: below 1.6 nats a character on the test text.

    python launch.py --experiment=char_rnn
    python launch.py predict --experiment=RUN --prompt="ROMEO:"

Karpathy (2015), http://karpathy.github.io/2015/05/21/rnn-effectiveness: one layer here, so that it
takes ten minutes on two cores. All of Shakespeare is 4.6 million characters to train on and the
last tenth to test; of that the first 100,000 are measured, which a 6-gram model with Witten-Bell
smoothing gives 1.656 nats each. No paper has this split. `--data.path` is not for this file: your
own text goes with `TextFile(path=FILE)`, as docs/language.md shows.
"""
