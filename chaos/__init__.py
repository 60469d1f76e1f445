"""A seeded storm over mixed traffic: does every session end exactly as its peer ended it, with every byte right?"""
