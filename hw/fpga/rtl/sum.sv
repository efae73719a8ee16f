// Sum of N signed numbers: a balanced tree of adders (least logic), or a chain (which multiplier blocks absorb). No register.
module dp_sum #(
  parameter int N = 4, IN = 12, OUT = 14,
  parameter bit CHAIN = 0
) (
  input  logic signed [N-1:0][IN-1:0] x,
  output logic signed [OUT-1:0] y
);
  if (CHAIN) begin : g_chain
    always_comb begin
      y = '0;
      for (int i = 0; i < N; i++) y += OUT'($signed(x[i]));
    end
  end else begin : g_tree
    logic signed [OUT-1:0] node [2*N];
    for (genvar i = 0; i < N; i++) begin : g_leaf
      assign node[N+i] = OUT'($signed(x[i]));
    end
    for (genvar i = 1; i < N; i++) begin : g_node
      assign node[i] = node[2*i] + node[2*i+1];
    end
    assign y = node[1];
  end
endmodule
