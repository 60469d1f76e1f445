"""The main job, shown: a real download and a real ssh session move between networks."""
