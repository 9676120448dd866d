"""What runs on an edge board: data, model, local training, and the agent that answers the controller."""
