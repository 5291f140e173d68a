"""What happens inside a flow run: open the study, run the models, send the results."""
