"""A service that navigates trees of documents: FastAPI over one index (`opensearch|elasticsearch` in
`SEARCH_LIBRARY`, its address in `SEARCH_URL`)."""

import os

from fastapi import FastAPI, HTTPException

INDEX = "documents"
LIBRARY = os.environ["SEARCH_LIBRARY"]

if LIBRARY == "opensearch":
    from opensearchpy import AsyncOpenSearch as Client, NotFoundError
else:
    from elasticsearch import AsyncElasticsearch as Client, NotFoundError

api = FastAPI()
client = Client([os.environ["SEARCH_URL"]], http_compress=True, max_retries=0)


@api.put("/documents/{document_id}")
async def put(document_id: str, document: dict):
    answer = await client.index(index=INDEX, id=document_id, body=document, refresh=True)
    return {"result": answer["result"]}


@api.get("/get_final_summary/{workflow_id}")
async def final_summary(workflow_id: str):
    wanted = [{"term": {"workflow_id.keyword": workflow_id}}, {"term": {"type.keyword": "summary"}}]
    answer = await client.search(index=INDEX, body={"query": {"bool": {"filter": wanted}}, "size": 1})
    if not answer["hits"]["hits"]:
        raise HTTPException(404)
    return answer["hits"]["hits"][0]["_source"]


@api.get("/get_complete_tree/{workflow_id}")
async def complete_tree(workflow_id: str):
    query = {"term": {"workflow_id.keyword": workflow_id}}
    counted = await client.count(index=INDEX, body={"query": query})
    answer = await client.search(index=INDEX, body={"query": query, "size": 100})
    return {"count": counted["count"], "documents": [hit["_source"] for hit in answer["hits"]["hits"]]}


@api.get("/get_document_with_context/{document_id}")
async def document_with_context(document_id: str):
    try:
        document = (await client.get(index=INDEX, id=document_id))["_source"]
    except NotFoundError:
        raise HTTPException(404) from None
    parents = await client.mget(index=INDEX, body={"ids": [document["parent"]]})
    return {"document": document, "context": parents["docs"]}


@api.get("/health/detailed")
async def health():
    return await client.cluster.health()
