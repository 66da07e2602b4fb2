"""Parts that several tests share: scripted peers, processes, free ports."""
