"""Files: attachments from callers to Dify, and files from Dify to callers."""
