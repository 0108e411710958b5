"""A Transformer writes Shakespeare, character by character: 1.6 nats a character on the test text.

    python launch.py --experiment=gpt_char
    python launch.py predict --experiment=RUN --prompt="ROMEO:"

The model and the recipe that nanoGPT (Karpathy 2022, README) gives for a CPU: 4 blocks of width
128 with 4 heads, 64 characters at once, batches of 12, 2,000 steps of AdamW, dropout off; 0.8
million parameters. There it comes to 1.88 nats on the last tenth of the "tiny Shakespeare" (1.1 MB;
its baby GPT of 10.7 million parameters on a GPU to 1.4697). Here the text is all of Shakespeare.
"""
